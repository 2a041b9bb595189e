// Pure functions of the answer of /inspect: `held` are ascending lists of token numbers, and
// `layers` has, for each KV head of each layer, the index of its list.

/** Maps token numbers to columns; several tokens share one if there are fewer columns. */
export class Scale {
  constructor(extent, most) {
    this.extent = extent;
    this.columns = Math.max(1, Math.min(extent, most));
  }

  column(token) {
    return Math.floor((token * this.columns) / this.extent);
  }

  first(column) {
    return Math.ceil((column * this.extent) / this.columns);
  }

  /** The number of tokens in [start, stop) that are in a column. */
  size(column, start, stop) {
    const from = Math.max(start, this.first(column));
    return Math.max(0, Math.min(stop, this.first(column + 1)) - from);
  }
}

/** For each layer, the share of the seen tokens of each column that it holds. */
export function shares(held, layers, tail, scale, seen) {
  const [start, stop] = tail;
  const counts = held.map((tokens) => {
    const count = new Uint32Array(scale.columns);
    for (const token of tokens) count[scale.column(token)] += 1;
    if (stop > start) {
      const last = scale.column(stop - 1);
      for (let c = scale.column(start); c <= last; c += 1) count[c] += scale.size(c, start, stop);
    }
    return count;
  });
  const rows = new Map();
  return layers.map((heads) => {
    const key = heads.join();
    if (!rows.has(key)) {
      const row = new Float32Array(scale.columns);
      for (let c = 0; c < scale.columns; c += 1) {
        const all = heads.length * scale.size(c, 0, seen);
        if (all) row[c] = heads.reduce((sum, list) => sum + counts[list][c], 0) / all;
      }
      rows.set(key, row);
    }
    return rows.get(key);
  });
}

/** For each token, the mean over the layers of the share of KV heads that hold it. */
export function coverage(held, layers, seen) {
  const weights = new Float64Array(held.length);
  for (const heads of layers) {
    for (const list of heads) weights[list] += 1 / heads.length / layers.length;
  }
  const result = new Float32Array(seen);
  held.forEach((tokens, list) => {
    for (const token of tokens) result[token] += weights[list];
  });
  return result;
}

/** Tokens per KV head, averaged in each layer and then over the layers. */
export function meanHeld(held, layers) {
  const ofLayer = (heads) => heads.reduce((sum, list) => sum + held[list].length, 0) / heads.length;
  return layers.reduce((sum, heads) => sum + ofLayer(heads), 0) / layers.length;
}

/** The tokens held before and not after, in the same format. */
export function evicted(before, tail, after) {
  const held = [];
  const numbers = new Map();
  const layers = before.layers.map((heads, layer) =>
    heads.map((list, head) => {
      const other = after.layers[layer][head];
      const key = `${list}/${other}`;
      if (!numbers.has(key)) {
        numbers.set(key, held.length);
        held.push(missing(before.held[list], tail, after.held[other]));
      }
      return numbers.get(key);
    }),
  );
  return { held, layers, any: held.some((tokens) => tokens.length > 0) };
}

function missing(tokens, [start, stop], others) {
  const result = [];
  let place = 0;
  const check = (token) => {
    while (place < others.length && others[place] < token) place += 1;
    if (others[place] !== token) result.push(token);
  };
  for (const token of tokens) check(token);
  for (let token = start; token < stop; token += 1) check(token);
  return result;
}

/** For each layer, the share of its KV heads that hold a token. */
export function layersWith(held, layers, token) {
  const has = held.map((tokens) => includes(tokens, token));
  return layers.map((heads) => heads.filter((list) => has[list]).length / heads.length);
}

function includes(tokens, token) {
  let low = 0;
  let high = tokens.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (tokens[middle] < token) low = middle + 1;
    else high = middle;
  }
  return tokens[low] === token;
}
