import pytest

from regraft.backends.tvm._entry import dynamic_names, with_entries
from regraft.backends.tvm.kernels._kernel import Argument
from regraft.errors import BackendError

SOURCE = """
static char error_buf[1024];
extern "C" TL_EXPORT int call(half_t* x, half_t* y, int rows, cudaStream_t stream=cudaStreamDefault) {
		config.numAttrs = 1;
		cudaLaunchKernelEx(&config, main_kernel, x, y, rows);
		config.numAttrs = 1;
		cudaLaunchKernelEx(&config, main_kernel_1, x, y, rows);
}
"""
X, Y = Argument("x", ("rows", 8), "float16"), Argument("y", ("rows", 4), "float16", "out")


def test_no_launch_may_start_before_the_kernel_before_it_has_finished():
    found = with_entries(SOURCE, "some_op", [X, Y])
    assert found.count("config.numAttrs = 0;") == 2
    assert "config.numAttrs = 1;" not in found


@pytest.mark.parametrize(
    "source",
    [
        SOURCE.replace("config.numAttrs = 1;", "config.numAttrs = 2;"),
        SOURCE.replace("config.numAttrs = 1;", "", 1),
        SOURCE + "main_kernel<<<1, 2>>>(x);",
        SOURCE.replace("cudaLaunchKernelEx", "cuLaunchKernel"),
    ],
)
def test_a_launch_of_another_form_is_refused(source):
    with pytest.raises(BackendError, match="in a way that is not known to be safe"):
        with_entries(source, "some_op", [X, Y])


def test_errors_are_kept_for_each_thread():
    assert "static thread_local char error_buf[1024];" in with_entries(SOURCE, "some_op", [X, Y])


def test_arguments_that_the_kernel_does_not_take_are_refused():
    with pytest.raises(BackendError, match="the kernel of some_op takes 2 tensors; 1 are described"):
        with_entries(SOURCE, "some_op", [X])
    fixed = [Argument("x", (1, 8), "float16"), Argument("y", (1, 4), "float16", "out")]
    with pytest.raises(BackendError, match=r"takes the extents \['rows'\]; \[\] are described"):
        with_entries(SOURCE, "some_op", fixed)


def test_dynamic_extents_are_named_once_in_order():
    arguments = [Argument("a", ("batch", "keys", 4), "int8"), Argument("b", ("batch", "queries"), "int8")]
    assert dynamic_names(arguments) == ["batch", "keys", "queries"]
