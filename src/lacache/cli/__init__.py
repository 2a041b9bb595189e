"""The command `lacache`."""

import sys


def main() -> None:
    """Run the command line."""
    # Everything is imported inside, since Ctrl-C may come meanwhile.
    try:
        from lacache.cli.process import clean_exit

        with clean_exit():
            import logging

            # Where torchao is installed, transformers imports it, and it tells of kernels for GPUs
            # that it cannot load.
            for name in ("torchao", "torch.utils._pytree"):
                logging.getLogger(name).setLevel(logging.ERROR)

            from lacache.cli.app import app

            app()
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        sys.exit(130)
