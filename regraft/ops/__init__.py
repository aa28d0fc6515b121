"""Structured ops: what each one means, one file an op.

An op is found by its file: `regraft/ops/<name>.py` holds `op`. Nothing else needs an edit.
"""

from collections.abc import Mapping
from functools import lru_cache
from importlib import import_module
from pkgutil import iter_modules

from regraft.errors import UnknownNameError
from regraft.ops._builder import Builder
from regraft.ops._eager import TorchBuilder, evaluate
from regraft.ops._op import Example, Ints, Op, Operand

__all__ = ["Builder", "Example", "Ints", "Op", "Operand", "TorchBuilder", "all_ops", "evaluate", "get_op"]


@lru_cache(maxsize=1)
def all_ops() -> Mapping[str, Op]:
    """Return every op by name, in alphabetical order."""
    names = sorted(module.name for module in iter_modules(__path__) if not module.name.startswith("_"))
    return {name: import_module(f"{__name__}.{name}").op for name in names}


def get_op(name: str) -> Op:
    """Return the op of that name.

    Raises:
        UnknownNameError: with the names that exist.
    """
    ops = all_ops()
    if name not in ops:
        raise UnknownNameError(f"regraft.ops has no {name!r}; it has: {', '.join(ops)}")
    return ops[name]
