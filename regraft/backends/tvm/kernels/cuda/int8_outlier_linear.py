"""TileLang templates of `int8_outlier_linear`; see the description in the folder above."""

import tilelang.language as T

from regraft.backends.tvm.kernels.cuda._integers import few_rows_kernel, product_kernel, quantize_kernel


def template(problem, tiling):
    """Return the kernels as TileLang's program, rows dynamic."""
    rows = T.dynamic("rows")
    inner, outer, dtype = problem.sizes["in_features"], problem.sizes["out_features"], problem.storage
    few, has_bias, sizes, tiles = problem.sizes["outliers"], problem.has("bias"), (rows, outer, inner), tiling.tiles

    @T.prim_func
    def int8_outlier_linear(
        x: T.Tensor((rows, inner), dtype),
        weight: T.Tensor((outer, inner), "int8"),
        scale: T.Tensor((outer,), "float32"),
        inliers: T.Tensor((inner,), "bool"),
        outliers: T.Tensor((few,), "int64"),
        outlier_weight: T.Tensor((outer, few), dtype),
        bias: T.Tensor((outer,), dtype),
        y: T.Tensor((rows, outer), dtype),
        codes: T.Tensor((rows, inner), "int8"),
        step: T.Tensor((rows,), "float32"),
    ):
        columns = (x, outliers, outlier_weight)
        quantize_kernel(x, inliers, codes, step, rows, inner)
        if tiling.variant == "decode":
            few_rows_kernel(codes, weight, step, scale, columns, bias if has_bias else None, y, sizes, tiles)
        else:
            product_kernel(codes, weight, step, scale, columns, bias if has_bias else None, y, sizes, tiles)

    return int8_outlier_linear
