"""The command `lacache`."""

import io
import sys


def main() -> None:
    """Run the command line."""
    # A terminal that cannot show a character shows a question mark instead of ending the stream.
    for output in (sys.stdout, sys.stderr):
        if isinstance(output, io.TextIOWrapper):
            output.reconfigure(errors="replace")

    from lacache.cli.app import app

    app()
