"""The subcommands, each imported when it is used, and one line for each error."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Annotated, Any, NoReturn, final

import typer
from typer.core import TyperGroup

from lacache.errors import LaCacheError
from lacache.version import __version__

# A subcommand is the function of the same name in the module of the same name, which imports
# heavy packages inside the function, so that help is quick.
COMMANDS = ("demo", "generate", "chat", "serve", "inspect", "eval", "calibrate", "tune", "report")

# Newer versions of typer have a private copy of click.
_UsageError: Any = typer.BadParameter.__base__


@final
class LazyGroup(TyperGroup):
    """Group of subcommands that imports each on demand and prints our errors in one line."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the subcommands in their order in the help."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a subcommand, or None if there is no such one."""
        if cmd_name not in COMMANDS:
            return None
        function = getattr(import_module(f"lacache.cli.{cmd_name}"), cmd_name)
        return _command(cmd_name, function)

    def make_context(self, info_name: Any, args: Any, *others: Any, **options: Any) -> Any:
        """Parse what precedes the subcommand."""
        with _one_line_errors(info_name):
            return super().make_context(info_name, args, *others, **options)

    def invoke(self, ctx: Any) -> Any:
        """Run a subcommand and print its errors in one line."""
        with _one_line_errors(ctx.command_path):
            return super().invoke(ctx)


@contextmanager
def _one_line_errors(path: str) -> Iterator[None]:
    """Exit with one line on errors of the user and on interruptions."""
    try:
        yield
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # how typer shows the help, not an error
            raise
        path = error.ctx.command_path if error.ctx else path
        _fail(f"{error.format_message().rstrip('.')}; see {path} --help", error)
    except LaCacheError as error:
        _fail(str(error), error)
    except PermissionError as error:
        # Every use of a path in a folder without access raises it.
        if error.filename is None:
            raise
        message = f"{error.filename}: {error.strerror}"
        _fail(f"{message}; give this process access to it, or take another path", error)
    except KeyboardInterrupt as error:
        typer.echo("stopped", err=True)
        raise typer.Exit(130) from error


def _fail(message: str, error: Exception) -> NoReturn:
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    raise typer.Exit(2) from error


def _command(name: str, function: Callable[..., None]) -> Any:
    alone = typer.Typer(add_completion=False, rich_markup_mode="markdown")
    alone.command(name)(function)
    return typer.main.get_command(alone)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lacache {__version__}")
        raise typer.Exit


app = typer.Typer(cls=LazyGroup, add_completion=False, pretty_exceptions_enable=False)


@app.callback(no_args_is_help=True)
def lacache(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Generate without limit in constant memory, with the LaCache ladder KV cache."""
