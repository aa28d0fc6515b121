"""What the interpreter of templates refuses, on small programs that each do one thing wrong."""

import os

import numpy as np
import pytest

from regraft.backends.tvm._templates import interpret
from regraft.backends.tvm._worker import Worker
from regraft.backends.tvm.kernels._kernel import Argument, Kernel, Problem, Tiling, Use
from regraft.errors import BackendError, ShapeError

FRAME = """
import tilelang.language as T

def template(problem, tiling):
    rows = T.dynamic("rows")

    @T.prim_func
    def main(x: T.Tensor((rows, 8), "float32"), bias: T.Tensor((8,), "float32"), y: T.Tensor((rows, 8), "float32")):
        with T.Kernel(T.ceildiv(rows, 4), threads=32) as owner:
            tile = T.alloc_shared((4, 8), "float32")
            thin = T.alloc_fragment((4,), "float32")
{body}
    return main
"""

PROGRAMS = {
    "copies": ["T.copy(x[owner * 4, 0], tile)", "T.copy(tile, y[owner * 4, 0])"],
    "reads_beyond": ["for i, j in T.Parallel(4, 8):", "    y[owner * 4, j] = x[owner * 4 + i, j + 1]"],
    "writes_beyond": ["for i, j in T.Parallel(4, 8):", "    y[owner * 4 + i, j] = T.float32(1)"],
    "tile_beyond": ["T.copy(x[owner * 4, 0], tile)", "T.copy(tile[1:5, 0:8], y[owner * 4 : owner * 4 + 4, 0:8])"],
    "races": ["for i, j in T.Parallel(4, 8):", "    thin[i] = T.float32(1)"],
    "reads_nothing": ["T.copy(tile, y[owner * 4, 0])"],
    "uses_a_thread": ["y[0, T.get_thread_binding()] = T.float32(1)"],
    "unknown_call": ["for i in T.Parallel(4):", "    thin[i] = T.atan(T.float32(1))"],
    "unknown_tile": ["T.cumsum(tile, dim=1)"],
    "touches_absent": ["y[0, 0] = bias[0]"],
    "sum_of_columns": [
        "T.copy(x[owner * 4, 0], tile)",
        "T.reduce_sum(tile, thin, dim=1)",
        "for i in T.Parallel(4):",
        "    if owner * 4 + i < rows:",
        "        y[owner * 4 + i, 0] = thin[i]",
    ],
}


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    folder = tmp_path_factory.mktemp("programs")
    for name, lines in PROGRAMS.items():
        body = "\n".join(f"            {line}" for line in lines)
        (folder / f"program_{name}.py").write_text(FRAME.format(body=body))
    worker = Worker(timeout_s=60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        yield worker
    worker.close()


def arguments(problem, tiling):
    return (
        Argument("x", ("rows", 8), "float32"),
        Argument("bias", (8,), "float32", present=False),
        Argument("y", ("rows", 8), "float32", "out"),
    )


def run(worker, program, x):
    kernel = Kernel(
        op="some_op",
        dtypes=("float32",),
        sizes=(),
        options={},
        variants={},
        problem=lambda shapes, attributes, dtype: Problem(dtype, {}),
        arguments=arguments,
        default=lambda problem, arch: Tiling("", {}),
        use=lambda problem, tiling: Use(0, 0, 1),
        template=f"program_{program}",
    )
    return interpret(kernel, Problem("float32", {}), Tiling("", {}), {"x": x}, worker)["y"]


def numbers(rows):
    return np.arange(rows * 8, dtype=np.float32).reshape(rows, 8)


@pytest.mark.parametrize("rows", [0, 1, 4, 7])
def test_a_copy_stays_inside_of_global_memory(worker, rows):
    assert np.array_equal(run(worker, "copies", numbers(rows)), numbers(rows))


def test_only_what_is_written_changes(worker):
    result = run(worker, "sum_of_columns", numbers(5))
    assert np.array_equal(result[:, 0], numbers(5).sum(axis=1))
    assert np.isnan(result[:, 1:]).all()


def test_a_buffer_on_the_chip_starts_as_nan(worker):
    assert np.isnan(run(worker, "reads_nothing", numbers(4))).all()


@pytest.mark.parametrize(
    ("program", "text"),
    [
        ("reads_beyond", "IndexError: reads x at 8 of axis 1, whose extent is 8"),
        ("writes_beyond", "IndexError: writes y at 5 of axis 0, whose extent is 5"),
        ("tile_beyond", "IndexError: a tile of tile is 1 to 5 of axis 0, whose extent is 4"),
        ("races", "IndexError: iterations of a parallel loop write the same element of thin"),
        ("uses_a_thread", "it runs blocks, not single threads"),
        ("unknown_call", "NotImplementedError: the interpreter does not know the call tirx.atan"),
        ("unknown_tile", "NotImplementedError: the interpreter does not know the call tl.tileop.cumsum here"),
        ("touches_absent", "IndexError: touches bias, which is absent"),
    ],
)
def test_what_no_kernel_may_do_is_an_error(worker, program, text):
    with pytest.raises(BackendError) as caught:
        run(worker, program, numbers(5))
    assert text in str(caught.value)
    assert str(caught.value).startswith(f"tilelang: program_{program}: ")


def test_inputs_that_do_not_fit_are_refused_before_the_template_is_asked(worker):
    with pytest.raises(ShapeError, match=r"some_op: x must be \[rows, 8\] of float32; got \[3, 7\] of float32"):
        run(worker, "copies", np.zeros((3, 7), np.float32))
    with pytest.raises(ShapeError, match=r"x must be \[rows, 8\] of float32; got \[3, 8\] of float64"):
        run(worker, "copies", np.zeros((3, 8)))
