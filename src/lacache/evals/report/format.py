"""Numbers as a page shows them."""

from collections.abc import Iterable, Sequence

from lacache.evals.report.paired import UNKNOWN, Estimate

EQUAL_BYTES = 0.02
"""Mean bytes within this share of StreamingLLM's count as equal."""
NOTHING = "–"  # noqa: RUF001  # an en dash for an empty field, as tables have it


def kib(num_bytes: float) -> str:
    """KiB without decimals, or with two digits where there are few."""
    size = num_bytes / 1024
    return f"{size:,.0f}" if size >= 100 else f"{size:,.3g}"


def share(value: float | None) -> str:
    """Per cent."""
    return NOTHING if value is None else f"{100 * value:.1f} %"


def number(value: float) -> str:
    """Three digits after the point, fewer for large numbers."""
    if abs(value) >= 1e5:
        return f"{value:.2e}"
    return f"{value:,.3f}" if abs(value) < 100 else f"{value:,.1f}"


def with_interval(value: float, low: float | None, high: float | None) -> str:
    """A number and, where it is known, its interval."""
    if low is None or high is None or (low, high) == UNKNOWN:
        return number(value)
    return f"{number(value)} {_span(low, high)}"


def signed(estimate: Estimate | None) -> str:
    """A difference; bold where its interval leaves 0 out."""
    if estimate is None:
        return NOTHING
    value, low, high = (f"{number(part) if part <= 0 else '+' + number(part)}" for part in estimate)
    if estimate[1:] == UNKNOWN:
        return value
    text = f"{value} [{low}, {high}]"
    return f"**{text}**" if estimate.low > 0 or estimate.high < 0 else text


def ratio(estimate: Estimate | None) -> str:
    """A ratio; bold where its interval leaves 1 out."""
    if estimate is None:
        return NOTHING
    text = f"× {estimate.value:.3f}"
    if estimate[1:] == UNKNOWN:
        return text
    text += f" {_span(estimate.low, estimate.high)}"
    return f"**{text}**" if estimate.low > 1 or estimate.high < 1 else text


def _span(low: float, high: float) -> str:
    return f"[{number(low)}, {number(high)}]"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], *, texts: int = 1) -> str:
    """A table in Markdown; the first `texts` columns to the left, the others to the right."""
    lines = [
        "| " + " | ".join(head) + " |",
        "|" + "|".join("---" if i < texts else "--:" for i in range(len(head))) + "|",
    ]
    # A bar in a setting would start another column.
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"
