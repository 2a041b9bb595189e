// Formats numbers, sizes and tokens.

const NUMBER = new Intl.NumberFormat("en");
const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

export const number = (value) => NUMBER.format(Math.round(value));

export const plural = (count, noun) => `${number(count)} ${noun}${count === 1 ? "" : "s"}`;

export function bytes(value) {
  let unit = 0;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${value < 10 && unit ? value.toFixed(1) : Math.round(value)} ${UNITS[unit]}`;
}

/** 0, 1, 2, 5 as "0–2, 5". */
export function ranges(numbers) {
  const parts = [];
  for (const one of numbers) {
    const last = parts.at(-1);
    if (last && last[1] === one - 1) last[1] = one;
    else parts.push([one, one]);
  }
  return parts.map(([from, to]) => (from === to ? from : `${from}–${to}`)).join(", ");
}

// JSON shows spaces and line ends, which a token may consist of. Of several tokens that are one
// character, only the last has a text.
const quoted = (text) =>
  !text || text.includes("\uFFFD") ? "a part of a character" : `“${JSON.stringify(text).slice(1, -1)}”`;

/** Describe a token and the layers that hold it. `shares` of KV heads per layer, or null. */
export function describeToken(index, text, shares) {
  const name = `Token ${number(index)}, ${quoted(text)}`;
  if (!shares) return `${name}: not processed yet.`;
  const layers = [...shares.keys()];
  const whole = layers.filter((layer) => shares[layer] === 1);
  const part = layers.filter((layer) => shares[layer] > 0 && shares[layer] < 1);
  if (whole.length === layers.length) return `${name}: held in all ${layers.length} layers.`;
  if (!whole.length && !part.length) return `${name}: evicted, no layer holds it.`;
  const where = [];
  if (whole.length) where.push(`layers ${ranges(whole)}`);
  if (part.length) where.push(`by some KV heads in ${ranges(part)}`);
  const total = whole.length + part.length;
  return `${name}: held in ${total} of ${layers.length} layers (${where.join("; ")}).`;
}
