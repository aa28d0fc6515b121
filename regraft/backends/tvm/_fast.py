"""Elementary functions in whole graphs as multiplications and additions, which LLVM makes vectors of."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from regraft.backends.tvm._compat import module
from regraft.backends.tvm.kernels.cpu._elementary import Elementary

relax: Final[Any] = module("tvm.relax")
te: Final[Any] = module("tvm.te")


class _Inline(Elementary):
    """Of single numbers, in one expression."""

    def kept(self, value: Any) -> Any:
        """The number itself: it is computed where it is read, and what is read twice is found by the compiler."""
        return value


def _activation(kind: str, otherwise: Callable[..., Any]) -> Callable[..., Any]:
    """Return the lowering of an activation: our own for float32, else TVM's."""
    function = _Inline(1).activation(kind)

    def lower(builder: Any, x: Any) -> Any:
        if x.struct_info.dtype != "float32":
            return builder.emit(otherwise(x))

        def compute(x: Any) -> Any:
            return te.compute(x.shape, lambda *place: function(x(*place)), name=kind)  # pyright: ignore[reportUnknownLambdaType]

        return builder.emit_te(compute, x)

    return lower


def _gelu(builder: Any, x: Any, approximate: str = "none") -> Any:
    exact = approximate == "none"
    lower = _activation("gelu", relax.op.nn.gelu) if exact else _activation("gelu_tanh", relax.op.nn.gelu_tanh)
    return lower(builder, x)


FAST: Final[Mapping[str, Callable[..., Any]]] = {
    "gelu.default": _gelu,
    "silu.default": _activation("silu", relax.op.nn.silu),
    "sigmoid.default": _activation("sigmoid", relax.op.sigmoid),
    "tanh.default": _activation("tanh", relax.op.tanh),
}
"""By the names of torch's operators, as TVM's importer spells them."""
