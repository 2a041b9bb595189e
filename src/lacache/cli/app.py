"""The subcommands, each loaded when it is used, and how errors end."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Annotated, Any, NoReturn, final

import typer
from typer.core import TyperGroup

from lacache.errors import LaCacheError
from lacache.version import __version__

# Subcommand and function of the same name, in a module of the same name. Such a module imports
# what is heavy inside of the function, so that help is quick.
COMMANDS = ("demo", "generate", "chat", "serve", "inspect", "eval", "calibrate", "tune", "report")

# Newer versions of typer have a click of their own, in a place that they do not tell.
_UsageError: Any = typer.BadParameter.__base__


@final
class LazyGroup(TyperGroup):
    """Imports a subcommand when it is asked for, and ends our errors in one line."""

    def list_commands(self, ctx: Any) -> list[str]:
        """In the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The subcommand, or None if there is no such one."""
        if cmd_name not in COMMANDS:
            return None
        function = getattr(import_module(f"lacache.cli.{cmd_name}"), cmd_name)
        return _command(cmd_name, function)

    def make_context(self, info_name: Any, args: Any, *others: Any, **options: Any) -> Any:
        """Read what stands before the subcommand."""
        with _in_one_line(info_name):
            return super().make_context(info_name, args, *others, **options)

    def invoke(self, ctx: Any) -> Any:
        """Run a subcommand."""
        with _in_one_line(ctx.command_path):
            return super().invoke(ctx)


@contextmanager
def _in_one_line(path: str) -> Iterator[None]:
    """End errors of the user and interruptions."""
    try:
        yield
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # no error, but how help is asked for
            raise
        path = error.ctx.command_path if error.ctx else path
        _fail(f"{error.format_message().rstrip('.')}; see {path} --help", error)
    except LaCacheError as error:
        _fail(str(error), error)
    except PermissionError as error:
        # Even asking what a path is fails below a folder that may not be entered.
        if error.filename is None:
            raise
        told = f"{error.filename}: {error.strerror}"
        _fail(f"{told}; give this process access to it, or take another path", error)
    except KeyboardInterrupt as error:
        typer.echo("stopped", err=True)
        raise typer.Exit(130) from error


def _fail(told: str, error: Exception) -> NoReturn:
    typer.echo(f"error: {' '.join(told.split())}", err=True)
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
    """Read and write without end in constant memory, with the LaCache ladder KV cache."""
