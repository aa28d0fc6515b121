"""The command line: `regraft COMMAND ...`. A command is a file in `commands/`, found by its name."""

from regraft.cli._main import main

__all__ = ["main"]
