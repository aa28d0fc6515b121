"""How the rest of a whole graph is compiled for the CPU: operators that follow each other fused, loops in parallel."""

from typing import Any, Final

from regraft.backends.tvm._compat import module
from regraft.backends.tvm.kernels.cpu._host import Host

tvm: Final[Any] = module("tvm")
relax: Final[Any] = module("tvm.relax")
_passes: Final[Any] = module("tvm.relax.backend.cpu_generic.pipeline")


def pipeline(host: Host) -> Any:
    """Return the passes from Relax to code."""

    @tvm.transform.module_pass(opt_level=0)
    def whole(program: Any, _: Any) -> Any:
        with host.target:
            steps = [
                *_passes.library_dispatch_passes(host.target),
                *_passes.legalize_passes(host.target),
                *_passes.dataflow_lower_passes(host.target),
                *_passes.finalize_passes(host.target),
            ]
            return tvm.transform.Sequential(steps)(program)

    return whole
