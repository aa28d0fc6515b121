"""`regraft doctor`: what is installed here, what works, and the line that installs what is missing."""

from typing import Annotated, Any

import typer

from regraft.cli._environment import Environment, Package, environment
from regraft.cli._output import print_json, print_lines
from regraft.cli._text import aligned

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Say what is installed, and how to install what is missing."""
    found = environment()
    if as_json:
        print_json(found.to_dict())
    else:
        print_lines(_lines(found))
    if not found.core_is_fine:
        raise typer.Exit(1)


def _lines(found: Environment) -> list[str]:
    rows = [*found.machine.items(), *(_row(package) for package in found.core)]
    lines = aligned([(name, text) for name, text in rows])
    for name, packages in found.extras.items():
        missing = [package.name for package in packages if package.problem]
        state = f"missing {', '.join(missing)}: {found.install_line(name)}" if missing else "installed"
        lines.append(f"extra [{name}]: {state}")
    verdict = "the core works" if found.core_is_fine else f"the core is broken: {found.install_line()}"
    return [*lines, verdict]


def _row(package: Package) -> tuple[str, str]:
    parts: list[Any] = [package.version, package.detail, package.problem]
    return package.name, "; ".join(part for part in parts if part)
