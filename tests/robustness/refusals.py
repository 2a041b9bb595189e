"""What every refusal must look like."""

from typing import Any


def assert_refused(result: Any, *told: str) -> None:
    """One line on stderr, nothing on stdout, exit code 2."""
    assert not isinstance(result.exception, Exception), result.exception
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    # Others may have told of their progress before.
    assert lines[-1].startswith("error: "), result.stderr
    for words in told:
        assert words in lines[-1]
