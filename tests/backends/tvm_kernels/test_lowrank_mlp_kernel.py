import pytest
from kernel_oracles import TOLERANCES, error_in_interpreter

from regraft.backends.tvm.kernels._kernel import Problem, Tiling
from regraft.backends.tvm.kernels.lowrank_mlp import kernel
from regraft.graph.activation import FUNCTIONS

TILES = Tiling("rows", {"rows": 32, "hidden": 32, "columns": 32, "depth": 32, "stages": 2, "threads": 128})
SIZES = {"in_features": 67, "in_rank": 19, "gate_rank": 21, "hidden": 70, "out_rank": 18, "out_features": 70}
BIASES = {"in_bias": 1, "out_bias": 1, "gate_bias": 1}


def error(dtype="float32", rows=5, sizes=SIZES, blocks=2, **options):
    problem = Problem(dtype, sizes, {"activation": "gelu", **options})
    attributes = {"activation": problem.options["activation"], "blocks": blocks}
    return error_in_interpreter(kernel, problem, TILES, {"rows": rows}, attributes)


@pytest.mark.parametrize("dtype", kernel.dtypes)
def test_it_computes_the_op_in_every_dtype(dtype):
    assert error(dtype, rows=37, in_bias=1, out_bias=1, residual=1) < TOLERANCES[dtype]


@pytest.mark.parametrize("activation", FUNCTIONS)
@pytest.mark.parametrize("gate", [0, 1])
def test_every_activation_with_and_without_a_gate(activation, gate):
    assert error(activation=activation, gate=gate, **BIASES) < 2e-5


@pytest.mark.parametrize("options", [{}, {"out_bias": 1}, {"gate": 1}, {"gate": 1, "residual": 1}, {"residual": 1}])
def test_operands_may_be_absent(options):
    assert error(**options) < 2e-5


@pytest.mark.parametrize("dense", ["in", "out", "gate", "in out", "in gate out"])
def test_layers_may_be_dense(dense):
    full = {"in_rank": 67, "gate_rank": 67, "out_rank": 70}
    sizes = SIZES | {f"{name}_rank": full[f"{name}_rank"] for name in dense.split()}
    options = {f"dense_{name}": 1 for name in dense.split()}
    assert error(sizes=sizes, gate=1, **options, **BIASES) < 2e-5


def test_extents_of_one():
    assert error(rows=1, sizes=dict.fromkeys(SIZES, 1), blocks=1, in_bias=1, out_bias=1) < 2e-5


def test_a_dense_layer_with_a_rank_is_refused():
    problem = Problem("float16", SIZES, {"dense_in": 1})
    assert kernel.fits(problem, TILES, "sm_80") == "a dense layer has in_rank = in_features = 67; got 19"


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("rank", [32, 96, 128, 192])
def test_half_precision_fits_at_the_ranks_it_is_made_for(rank, arch):
    sizes = {"in_features": 768, "in_rank": rank, "gate_rank": rank, "hidden": 3072, "out_rank": rank}
    problem = Problem("float16", {**sizes, "out_features": 768}, {"in_bias": 1, "out_bias": 1})
    assert kernel.fits(problem, kernel.default(problem, arch), arch) is None


def test_a_wide_dense_layer_out_does_not_fit_and_says_so():
    problem = Problem("float16", {**SIZES, "out_rank": 4096, "out_features": 4096}, {"dense_out": 1})
    assert "KB of shared memory; a block on sm_80 has 163 KB" in kernel.fits(problem, TILES, "sm_80")
