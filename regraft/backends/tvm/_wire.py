"""Arrays as JSON, for the pipe to TileLang's process; bfloat16 included."""

import base64
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray


def to_wire(array: NDArray[Any] | None) -> dict[str, Any] | None:
    """Return an array as dtype, shape and content."""
    if array is None:
        return None
    content = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
    return {"dtype": array.dtype.name, "shape": list(array.shape), "content": content}


def from_wire(wire: dict[str, Any] | None) -> NDArray[Any] | None:
    """Return the array that `to_wire` wrote, its own copy."""
    if wire is None:
        return None
    content = base64.b64decode(wire["content"])
    return np.frombuffer(content, dtype=numpy_dtype(wire["dtype"])).reshape(wire["shape"]).copy()


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return numpy's dtype of that name."""
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
