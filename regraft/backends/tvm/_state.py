"""What of TVM works here, in words: for `regraft doctor`."""

from typing import Any, Final

import numpy as np

from regraft.backends.tvm._compat import PINS, module
from regraft.errors import MissingExtraError

_LENGTH: Final = 16


def describe() -> str:
    """Return what TVM can do on this machine, as one phrase; see `regraft.backends.tvm`."""
    try:
        tvm, te = module("tvm"), module("tvm.te")
    except MissingExtraError as error:
        return str(error).removeprefix("tvm backend: ")
    try:
        works = _kernel_works(tvm, te)
    except (RuntimeError, ValueError, TypeError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        return f"{PINS['apache-tvm']}; compiling for the CPU fails: {first}"
    result = "compiles for the CPU" if works else "what it compiles for the CPU computes something else"
    return f"{PINS['apache-tvm']}; {result}"


def _kernel_works(tvm: Any, te: Any) -> bool:
    x = te.placeholder((_LENGTH,), name="x")
    y = te.compute((_LENGTH,), lambda place: x[place] * 2.0 + 1.0, name="y")  # pyright: ignore[reportUnknownLambdaType]
    kernel = tvm.compile(te.create_prim_func([x, y]), target=tvm.target.Target({"kind": "llvm"}))
    given = np.arange(_LENGTH, dtype=np.float32)
    result = tvm.runtime.tensor(np.zeros_like(given))
    kernel["main"](tvm.runtime.tensor(given), result)
    return bool(np.array_equal(result.numpy(), given * 2 + 1))
