"""Convolutions and normalization in Relax, for every element type: TVM's importer has them for float32 alone.

16-bit floats are computed in float32, as in torch.
"""

from collections.abc import Sequence
from typing import Any, Final

from regraft.backends.tvm._compat import module

relax: Final[Any] = module("tvm.relax")


def convolution(
    builder: Any,
    x: Any,
    weight: Any,
    bias: Any,
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    transposed: bool,
    more: Sequence[int],
    groups: int,
) -> Any:
    """Emit a convolution over one, two or three dims, or over one or two a transposed one."""
    own = x.struct_info.dtype
    wide = "float32" if is_half(own) else own
    rank = x.struct_info.ndim - 2
    options = {"strides": list(strides), "padding": list(pads) * 2, "groups": groups, "out_dtype": wide}
    if transposed:
        apply = (relax.op.nn.conv1d_transpose, relax.op.nn.conv2d_transpose)[rank - 1]
        options["output_padding"] = list(more)
    else:
        apply = (relax.op.nn.conv1d, relax.op.nn.conv2d, relax.op.nn.conv3d)[rank - 1]
    y = builder.emit(apply(_as(builder, x, wide), _as(builder, weight, wide), dilation=list(dilations), **options))
    if bias is not None:
        shaped = builder.emit(relax.op.reshape(_as(builder, bias, wide), [1, -1, *[1] * rank]))
        y = builder.emit(relax.op.add(y, shaped))
    return _as(builder, y, own)


def layer_norm(builder: Any, x: Any, shape: Sequence[int], weight: Any, bias: Any, epsilon: float) -> Any:
    """Emit the normalization, its mean and its deviation, of which nothing reads the last two."""
    own = x.struct_info.dtype
    wide = "float32" if is_half(own) else own
    axes = list(range(-len(shape), 0))
    x = _as(builder, x, wide)
    centred = builder.emit(relax.op.subtract(x, relax.op.mean(x, axes, keepdims=True)))
    variance = builder.emit(relax.op.mean(relax.op.multiply(centred, centred), axes, keepdims=True))
    factor = builder.emit(relax.op.rsqrt(relax.op.add(variance, relax.const(epsilon, wide))))
    y = builder.emit(relax.op.multiply(centred, factor))
    y = y if weight is None else builder.emit(relax.op.multiply(y, _as(builder, weight, wide)))
    y = y if bias is None else builder.emit(relax.op.add(y, _as(builder, bias, wide)))
    return builder.emit(relax.Tuple([_as(builder, y, own), variance, factor]))


def is_half(dtype: str) -> bool:
    """Whether it is a floating-point type of 16 bits."""
    return dtype in ("float16", "bfloat16")


def _as(builder: Any, x: Any, dtype: str) -> Any:
    return x if x.struct_info.dtype == dtype else builder.emit(relax.op.astype(x, dtype))
