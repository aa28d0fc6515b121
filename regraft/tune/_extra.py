"""Libraries that only tuning needs: imported when they are used, and named when they are missing."""

from importlib import import_module
from typing import Any

from regraft.errors import MissingExtraError


def extra(name: str, package: str = "") -> Any:
    """Return a module.

    Args:
        name: with dots.
        package: what it is called in the package index, where that differs.

    Raises:
        MissingExtraError: when it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        needed = package or name.partition(".")[0]
        raise MissingExtraError(
            f"tune: needs {needed}, which is not installed", hint="pip install 'regraft[tvm]'"
        ) from error
