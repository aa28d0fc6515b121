import numpy as np
import pytest
import torch
from kernel_oracles import TOLERANCES, relative_error, to_array

from regraft.backends.tvm._templates import interpret
from regraft.backends.tvm.kernels._kernel import Problem, Tiling
from regraft.backends.tvm.kernels.multi_head_attention import kernel
from regraft.ops import evaluate, get_op

TILES = Tiling("rows", {"rows": 32, "columns": 32, "stages": 1, "threads": 128})
SIZES = {"heads": 2, "kv_heads": 1, "head": 19, "value": 21}
EXTENTS = {"batch": 2, "queries": 37, "keys": 45}
FULL = {"mask_batch": 1, "mask_heads": 1, "mask_queries": 1}


def drawn(dtype="float32", sizes=SIZES, extents=EXTENTS, **options):
    problem = Problem(dtype, sizes, {"scale": 0.7, "split": 1, **options})
    assert kernel.fits(problem, TILES, "sm_80") is None
    masks = {"mask": torch.bool}
    found = {}
    generator = torch.Generator().manual_seed(2)
    for argument in kernel.arguments(problem, TILES):
        if argument.role == "in" and argument.present:
            shape = [extents[dim] if isinstance(dim, str) else dim for dim in argument.dims]
            number = torch.randn(shape, generator=generator)
            found[argument.name] = (
                number > -0.5 if argument.name in masks else number.to(getattr(torch, argument.dtype))
            )
    return problem, found


def interpreted(problem, tensors):
    return interpret(kernel, problem, TILES, {name: to_array(tensor) for name, tensor in tensors.items()})["y"]


def oracle(problem, tensors):
    """Return the op on heads that are split off outside, in the kernel's layout."""
    split = problem.has("split")
    given = {name: tensor if tensor.dtype == torch.bool else tensor.double() for name, tensor in tensors.items()}
    given |= {name: given[name].transpose(1, 2) for name in "qkv" if split}
    attributes = {
        "heads": problem.sizes["heads"],
        "kv_heads": problem.sizes["kv_heads"],
        "split": 0,
        "scale": problem.options["scale"],
        "causal": problem.options.get("causal", 0),
    }
    y = evaluate(get_op("multi_head_attention"), given, attributes)
    return y.transpose(1, 2) if split else y


def error(dtype="float32", **options):
    problem, tensors = drawn(dtype, **options)
    return relative_error(interpreted(problem, tensors), oracle(problem, tensors))


@pytest.mark.parametrize("dtype", kernel.dtypes)
@pytest.mark.parametrize("split", [0, 1])
def test_it_computes_the_op_in_every_dtype_and_layout(split, dtype):
    assert error(dtype, split=split) < TOLERANCES[dtype]


@pytest.mark.parametrize("queries", [1, 37])
def test_causal_queries_see_the_keys_up_to_them(queries):
    assert error(causal=1, extents={"batch": 1, "queries": queries, "keys": 45}) < 2e-5
    assert error(causal=1, extents={"batch": 1, "queries": 45, "keys": queries}) < 2e-5


@pytest.mark.parametrize("axes", ["", "batch", "heads", "queries", "batch heads queries"])
def test_masks_and_biases_of_every_extent(axes):
    options = {f"{name}_{axis}": 1 for axis in axes.split() for name in ("mask", "bias")}
    assert error(mask=1, bias=1, **options) < 2e-5


def test_a_mask_and_causality_together():
    assert error(mask=1, causal=1, **FULL) < 2e-5


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_query_that_sees_nothing_gives_zero(dtype):
    problem, tensors = drawn(dtype, mask=1, **FULL)
    tensors["mask"][1, 1, 30] = False
    result = interpreted(problem, tensors)
    assert np.array_equal(result[1, 30, 1].astype(np.float32), np.zeros(21, np.float32))
    assert relative_error(result, oracle(problem, tensors)) < TOLERANCES[dtype]


def test_a_bias_of_minus_infinity_hides():
    problem, tensors = drawn(bias=1, bias_queries=1)
    tensors["bias"][0, 0, 5] = -torch.inf
    tensors["bias"][0, 0, :, :40] = -torch.inf
    result = interpreted(problem, tensors)
    assert not result[:, 5].any()
    assert relative_error(result, oracle(problem, tensors)) < 2e-5


def test_large_scores_stay_finite():
    problem, tensors = drawn()
    tensors["q"] *= 1000
    assert relative_error(interpreted(problem, tensors), oracle(problem, tensors)) < 1e-3


def test_extents_of_one():
    sizes = dict.fromkeys(SIZES, 1)
    assert error(sizes=sizes, extents=dict.fromkeys(EXTENTS, 1)) < 2e-5


def test_heads_that_are_no_multiple_are_refused():
    problem = Problem("float16", {**SIZES, "heads": 4, "kv_heads": 3})
    assert kernel.fits(problem, TILES, "sm_80") == "heads must be a multiple of kv_heads; got 4 and 3"


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("dtype", kernel.dtypes)
@pytest.mark.parametrize("head", [16, 40, 64, 128, 192])
def test_chosen_tiles_fit(head, dtype, arch):
    problem = Problem(dtype, {"heads": 12, "kv_heads": 12, "head": head, "value": head}, {"mask": 1}, rows=2048)
    assert kernel.fits(problem, kernel.default(problem, arch), arch) is None
