"""The form of every refusal."""

from typing import Any


def assert_refused(result: Any, *words: str) -> None:
    """Check for one error line on stderr with `words`, nothing on stdout, and exit code 2."""
    assert not isinstance(result.exception, Exception), result.exception
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    # Lines about progress may come before.
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: "), result.stderr
    for word in words:
        assert word in last
