"""The command line: `lacache` and its subcommands, one module each."""

import sys


def main() -> None:
    """Run the command line."""
    # Everything is imported inside, since Ctrl-C may come meanwhile.
    try:
        from lacache.cli.process import clean_exit

        with clean_exit():
            import logging

            # transformers imports torchao, which warns of GPU kernels that it cannot load.
            for name in ("torchao", "torch.utils._pytree"):
                logging.getLogger(name).setLevel(logging.ERROR)

            from lacache.cli.app import app

            app()
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        sys.exit(130)
