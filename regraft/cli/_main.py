"""The entry point: finds the command, runs it, and turns every failure into one line and an exit code.

Nothing here may import torch, so that `regraft doctor` runs where torch does not.
"""

import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import version
from pkgutil import iter_modules
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from regraft.cli import commands
from regraft.cli._text import one_line
from regraft.errors import RegraftError, RegraftWarning, UnknownNameError

TRACEBACK_VARIABLE = "REGRAFT_TRACEBACK"
INTERRUPTED = 130  # what shells report for a process ended by Ctrl-C


class Commands(TyperGroup):
    """The commands in the folder `commands/`, each imported only when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the commands, in alphabetical order."""
        return sorted(module.name for module in iter_modules(commands.__path__) if not module.name.startswith("_"))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command.

        Raises:
            UnknownNameError: with the one that was meant, and those that there are.
        """
        known = self.list_commands(ctx)
        if cmd_name not in known:
            close = get_close_matches(cmd_name, known, n=1)
            meant = f" (did you mean {close[0]!r}?)" if close else ""
            raise UnknownNameError(f"regraft has no command {cmd_name!r}{meant}; it has: {', '.join(known)}")
        command = typer.main.get_command(import_module(f"{commands.__name__}.{cmd_name}").app)
        command.name = cmd_name
        return command


app = typer.Typer(
    name="regraft", cls=Commands, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Make trained networks smaller and faster by checked rewrites."""
    if show_version:
        typer.echo(f"regraft {version('regraft')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code.

    0 done, 1 failed, 2 usage, 3 budget violated, 4 verification failed, 130 interrupted.

    Args:
        arguments: words after `regraft`; those of this process when None.
    """
    with warnings.catch_warnings():
        # Other packages' warnings are for their developers; Regraft's own are for whoever ran the command.
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", RegraftWarning)
        warnings.showwarning = _show_warning
        return _run(arguments)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        outcome = app(args=arguments, prog_name="regraft", standalone_mode=False)
    except RegraftError as error:
        return _fail(str(error), error.hint, error.exit_code)
    except typer.TyperException as error:
        return _fail(error.format_message(), _usage_hint(error), 2)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except ImportError as error:
        return _fail(f"{type(error).__name__}: {_first_line(error)}", "`regraft doctor` says what is missing", 1)
    except Exception as error:  # the last resort of a program: a defect must end in one line, too
        hint = f"set {TRACEBACK_VARIABLE}=1 to see where"
        return _fail(f"unexpected {type(error).__name__}: {_first_line(error)}", hint, 1)
    return outcome if isinstance(outcome, int) else 0


def _fail(message: str, hint: str | None, code: int) -> int:
    if os.environ.get(TRACEBACK_VARIABLE):
        traceback.print_exc()
    typer.echo(f"error: {one_line(message)}", err=True)
    if hint:
        typer.echo(f"hint: {one_line(hint)}", err=True)
    return code


def _usage_hint(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    command = "regraft" if context is None else context.command_path
    return f"`{command} --help` lists what it takes"


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")


def _show_warning(message: Warning | str, *_: Any) -> None:
    sys.stderr.write(f"warning: {one_line(str(message))}\n")
