"""Ops by name, found by listing the folder."""

from collections.abc import Mapping
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from regraft.errors import UnknownNameError
from regraft.ops._op import Op


@lru_cache(maxsize=1)
def all_ops() -> Mapping[str, Op]:
    """Return every op by name, in alphabetical order."""
    folder = str(Path(__file__).parent)
    names = sorted(module.name for module in iter_modules([folder]) if not module.name.startswith("_"))
    return {name: import_module(f"{__package__}.{name}").op for name in names}


def get_op(name: str) -> Op:
    """Return the op of that name.

    Raises:
        UnknownNameError: with the names that exist.
    """
    ops = all_ops()
    if name not in ops:
        raise UnknownNameError(f"regraft.ops has no {name!r}; it has: {', '.join(ops)}")
    return ops[name]
