"""From an exported program of core operators to Relax: TVM's importer, with what it gets wrong or loses mended.

TVM's importer loses shapes (a slice of a symbolic length, a broadcast of two), without which nothing behind them can be
compiled. torch knows every shape, so each result is told its own.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import sympy
import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument

from regraft.backends.tvm._compat import module
from regraft.backends.tvm._cuda import CudaCode
from regraft.backends.tvm._cuda_relax import called_on_gpu, symbol_of
from regraft.backends.tvm._extents import prim_expr
from regraft.backends.tvm._fast import FAST
from regraft.backends.tvm._kernel_calls import called
from regraft.backends.tvm._lowering import LOWERINGS
from regraft.backends.tvm._operator import code_of
from regraft.errors import BackendError

relax: Final[Any] = module("tvm.relax")
arith: Final[Any] = module("tvm.arith")
tirx: Final[Any] = module("tvm.tirx")
_Importer: Any = module("tvm.relax.frontend.torch.exported_program_translator").ExportedProgramImporter


def operator_name(node: fx.Node) -> str:
    """Return the name by which TVM's importer knows an operator ("add.Tensor")."""
    return str(getattr(node.target, "__name__", node.target))


class Importer(_Importer):
    """TVM's importer, with shapes and lowerings of our own."""

    def __init__(self) -> None:
        super().__init__()
        self._symbols: dict[str, Any] = {}
        self.convert_map.update({name: self._lowered(lower) for name, lower in {**LOWERINGS, **FAST}.items()})
        self.convert_map["run.default"] = self._kernel_call
        self.kernels: Final[dict[str, str]] = {}
        self.cuda: Final[dict[str, CudaCode]] = {}

    def check(self, program: ExportedProgram, name: str) -> None:
        """Raise BackendError that names the operators that cannot be imported."""
        unsupported = self.unsupported(program)
        if unsupported:
            raise BackendError(f"tvm backend: {name} has operators that TVM cannot take: {', '.join(unsupported)}")

    def unsupported(self, program: ExportedProgram) -> list[str]:
        """Return the operators of the program that cannot be imported, in order, each once."""
        calls = [node for node in program.graph.nodes if node.op == "call_function"]
        names = {operator_name(node): str(node.target) for node in calls if not _is_extent(node)}
        return [shown for name, shown in names.items() if name not in self.convert_map]

    def _check_unsupported_func_type(self, nodes: Any) -> None:
        """Nothing: `unsupported` tells, and knows what is arithmetic of extents."""

    def create_input_vars(self, exported_program: ExportedProgram) -> tuple[Any, Any, Any]:
        """Note which TVM variable stands for which symbol of torch; constants of the capture are no inputs."""
        specs = exported_program.graph_signature.input_specs
        specs[:] = [spec for spec in specs if not isinstance(spec.arg, ConstantArgument)]
        constants, inputs, _ = super().create_input_vars(exported_program)
        for node in exported_program.graph.nodes:
            if node.op == "placeholder" and node.name in inputs:
                self._note_symbols(node.meta["val"], inputs[node.name].struct_info.shape)
        # The bounds that tracing leaves, 2 and more, are not those that the program is run with.
        return constants, inputs, {}

    def _note_symbols(self, value: Any, shape: Any) -> None:
        for extent, known in zip(value.shape, shape, strict=True):
            if isinstance(extent, torch.SymInt) and isinstance(extent.node.expr, sympy.Symbol):
                self._symbols[str(extent.node.expr)] = known

    def _translate_fx_graph(
        self, graph_module: Any, nodes: Sequence[fx.Node], inputs_vars: Mapping[str, Any], custom_ops: Any = None
    ) -> Any:
        del graph_module, custom_ops
        for node in nodes:
            if node.op == "output":
                return self._flatten_output_args(self.retrieve_args(node)[0])
            if node.op == "placeholder":
                self.env[node] = inputs_vars.get(node.name)
            else:
                self.env[node] = self._converted(node)
        raise AssertionError("an exported program ends with an output")

    def _converted(self, node: fx.Node) -> Any:
        if _is_extent(node):
            return prim_expr(node.meta["val"].node.expr, self._symbols)
        value = self.convert_map[operator_name(node)](node)
        return self._shaped(value, node)

    def _shaped(self, value: Any, node: fx.Node) -> Any:
        """The value in the shape that torch knows, where TVM has found another one.

        By a reshape, which fails at run time when the two differ: a `match_cast` would be a second name for the same
        memory, of which the planning of memory (0.25) does not know.
        """
        known = node.meta.get("val")
        if not isinstance(known, Tensor) or not isinstance(value, relax.Expr):
            return value
        shape = [self._extent(extent) for extent in known.shape]
        found = value.struct_info.shape
        if found is None:
            raise BackendError(f"tvm backend: TVM does not find the shape of {node.name} ({node.target})")
        if value.struct_info.dtype != str(known.dtype).removeprefix("torch."):
            kinds = f"{known.dtype}, TVM's is {value.struct_info.dtype}"
            raise BackendError(f"tvm backend: the element type of {node.name} ({node.target}) is {kinds}")
        return value if _equal(list(found), shape) else self.block_builder.emit(relax.op.reshape(value, shape))

    def _extent(self, extent: Any) -> Any:
        if isinstance(extent, torch.SymInt):
            return prim_expr(extent.node.expr, self._symbols)
        return tirx.IntImm("int64", extent)

    def _lowered(self, lower: Callable[..., Any]) -> Callable[[fx.Node], Any]:
        def convert(node: fx.Node) -> Any:
            return lower(self.block_builder, *self.retrieve_args(node), **self._keywords(node))

        return convert

    def _kernel_call(self, node: fx.Node) -> Any:
        """A kernel of ours, called by its symbol: `kernels` has those for the CPU by key, `cuda` others by symbol."""
        activations, packed, key = node.args
        given = [self.env[value] for value in activations]  # pyright: ignore[reportGeneralTypeIssues, reportOptionalIterable]
        weights = [self.env[value] for value in packed]  # pyright: ignore[reportGeneralTypeIssues, reportOptionalIterable]
        shape = [self._extent(extent) for extent in node.meta["val"].shape]
        code = code_of(str(key))
        if isinstance(code, CudaCode):
            symbol = symbol_of(str(key), code)
            self.cuda[symbol] = code
            return called_on_gpu(self.block_builder, symbol, code, [*given, *weights], shape)
        symbol = self.kernels.setdefault(str(key), f"regraft_kernel_{len(self.kernels)}")
        return called(self.block_builder, symbol, str(key), given, weights, shape)

    def _keywords(self, node: fx.Node) -> dict[str, Any]:
        return {name: self.env.get(value, value) for name, value in node.kwargs.items()}


def _is_extent(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.SymInt)


def _equal(found: Sequence[Any], wanted: Sequence[Any]) -> bool:
    analyzer = arith.Analyzer()
    pairs = zip(found, wanted, strict=True)
    return len(found) == len(wanted) and all(analyzer.can_prove_equal(one, other) for one, other in pairs)
