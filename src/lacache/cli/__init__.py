"""The command `lacache`."""

import io
import logging
import sys


def main() -> None:
    """Run the command line."""
    # A terminal that cannot show a character shows a question mark instead of ending the stream.
    for output in (sys.stdout, sys.stderr):
        if isinstance(output, io.TextIOWrapper):
            output.reconfigure(errors="replace")

    # Where torchao is installed, transformers imports it, and it tells of kernels for GPUs that it
    # cannot load.
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)

    from lacache.cli.app import app

    app()
