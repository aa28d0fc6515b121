"""How the rest of a whole graph is compiled for the CPU: operators that follow each other fused, loops in parallel."""

from typing import Any, Final

from regraft.backends.tvm._compat import module
from regraft.backends.tvm.kernels.cpu._host import Host

tvm: Final[Any] = module("tvm")
tirx: Final[Any] = module("tvm.tirx")
s_tir: Final[Any] = module("tvm.s_tir")
_analysis: Final[Any] = module("tvm.s_tir.dlight.analysis")
_passes: Final[Any] = module("tvm.relax.backend.cpu_generic.pipeline")


def pipeline(host: Host) -> Any:
    """Return the passes from Relax to code."""

    @tvm.transform.module_pass(opt_level=0)
    def whole(program: Any, _: Any) -> Any:
        with host.target:
            steps = [
                *_passes.library_dispatch_passes(host.target),
                *_passes.legalize_passes(host.target),
                _in_parallel,
                *_passes.dataflow_lower_passes(host.target),
                *_passes.finalize_passes(host.target),
            ]
            return tvm.transform.Sequential(steps)(program)

    return whole


@tvm.transform.module_pass(opt_level=0)
def _in_parallel(program: Any, _: Any) -> Any:
    """Each operator's outer loops side by side; the innermost one is left to LLVM, which makes vectors of it."""
    functions = {
        name: _scheduled(function) if isinstance(function, tirx.PrimFunc) else function
        for name, function in program.functions.items()
    }
    return tvm.IRModule(functions, attrs=program.attrs)


def _scheduled(function: Any) -> Any:
    schedule = s_tir.Schedule(function)
    blocks = _analysis.normalize_prim_func(schedule)
    if blocks is None:  # not loops over blocks: a search, a sort
        return function
    for block in blocks:
        kinds = block.dom_kind()
        spatial = len(kinds) - len(kinds.lstrip("S"))
        outer = spatial - 1 if spatial == len(kinds) else spatial  # one loop inside for vectors
        if outer > 0:
            schedule.parallel(schedule.fuse(*schedule.get_loops(block.block_rv)[:outer]))
    found = schedule.mod["main"]
    return found.with_attrs(function.attrs) if function.attrs else found
