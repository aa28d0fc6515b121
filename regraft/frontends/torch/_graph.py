"""A captured PyTorch program behind the Graph protocol."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx

from regraft.frontends.torch._canonical import is_getitem
from regraft.frontends.torch._expand import expand
from regraft.frontends.torch._program import Program
from regraft.frontends.torch._rewrite import insert, rewrite
from regraft.frontends.torch._run import prepared_part, run_program
from regraft.frontends.torch._signature import Leaf, Signature, signature_of
from regraft.frontends.torch._types import Typer, name_dims
from regraft.frontends.torch._views import METADATA, Views, is_input
from regraft.graph.graph import Attributes, Inputs, Outputs, Replacement, StructuredOp, Tapped
from regraft.graph.snapshot import Snapshot, snapshot_of
from regraft.graph.view import Node, Value


@dataclass(frozen=True, slots=True)
class Rung:
    """One way of capturing that was tried.

    Attributes:
        name: what it does ("export, all dims dynamic").
        reason: why the one before it was not good enough; "" for the first.
    """

    name: str
    reason: str = ""


@dataclass(frozen=True)
class _Origin:
    """What copies of a graph have in common: nothing of it changes when nodes do."""

    name: str
    signature: Signature
    typer: Typer
    example_inputs: tuple[tuple[Any, ...], dict[str, Any]]
    capture_report: tuple[Rung, ...]
    notes: tuple[str, ...]


class FxGraph:
    """`Graph` over a torch.fx.GraphModule at the level of ATen.

    Keys are names of fx nodes. Weights have the names that they have in the user's model. Captured programs compute
    what the model computes in evaluation mode: dropout is gone for good.
    """

    kind: Literal["fx"] = "fx"

    def __init__(self, program: Program, origin: _Origin) -> None:
        self._program = program
        self._origin = origin
        self._views: Views | None = None

    @classmethod
    def of(
        cls,
        module: fx.GraphModule,
        name: str,
        example_inputs: tuple[tuple[Any, ...], dict[str, Any]] | None = None,
        capture_report: tuple[Rung, ...] = (),
        notes: Sequence[str] = (),
    ) -> "FxGraph":
        """Return a graph of its own over the weights of an ATen-level module, which is not changed.

        Args:
            module: its nodes carry `meta["val"]`.
            name: of the model, for messages.
            example_inputs: (args, kwargs) of the module; made up from the types when None.
            capture_report: how it was captured.
            notes: what a user should know of the capture beside that, one line each.
        """
        program = Program.of(module)
        placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
        found = [(str(node.target), node.meta.get("val")) for node in placeholders]
        typer = Typer(name_dims(found))
        leaves = [_leaf(node, typer) for node in placeholders]
        signature = signature_of(name, program.graph, leaves)
        examples = example_inputs or _made_up(signature, [value for _, value in found])
        return cls(program, _Origin(name, signature, typer, examples, capture_report, tuple(notes)))

    @property
    def name(self) -> str:
        """Class name of the captured model."""
        return self._origin.name

    @property
    def module(self) -> fx.GraphModule:
        """The program as a module: called like the captured one, by position or by name, and trainable.

        It runs at other batch and sequence sizes, and can be copied, saved and exported again. `train()` and `eval()`
        set flags that no node looks at: dropout and batch statistics were settled when the model was captured in
        evaluation mode.
        """
        return self._program.module

    @property
    def dim_names(self) -> Mapping[str, str]:
        """Names of symbolic dims ("batch") by the symbols that torch gives them ("s43")."""
        return self._origin.typer.names

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Names of the parameters of `module`, positional ones first."""
        return self._origin.signature.parameters

    @property
    def capture_report(self) -> tuple[Rung, ...]:
        """The ways of capturing that were tried, the one that worked last."""
        return self._origin.capture_report

    @property
    def notes(self) -> tuple[str, ...]:
        """What the capture fixed that one would expect to be free, one line each; empty for most models."""
        return self._origin.notes

    @property
    def example_inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of `module` that it can be exported with again."""
        return self._origin.example_inputs

    @property
    def dynamic_shapes(self) -> dict[str, Any]:
        """What torch.export takes, by parameter: dims that are symbolic here are left to torch (`Dim.AUTO`)."""
        return self._origin.signature.dynamic_shapes()

    def bind(self, inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return inputs as arguments of `module`.

        Raises:
            InputError: naming the input, what it needs and what was given.
        """
        return self._origin.signature.bind(inputs)

    def inputs(self) -> Sequence[Value]:
        """Return the graph's inputs, in order."""
        return tuple(self._view().inputs)

    def outputs(self) -> Sequence[Value]:
        """Return the graph's outputs, flattened, in order."""
        return tuple(self._view().outputs)

    def constants(self) -> Sequence[Value]:
        """Return the tensors that some node reads; tied weights are one entry."""
        return tuple(self._view().constants())

    def nodes(self) -> Sequence[Node]:
        """Return all nodes in graph order, without those that only check."""
        return tuple(self._view().nodes.values())

    def value(self, key: str) -> Value:
        """Return the value of that key; raises GraphError when there is none."""
        return self._view().value(key)

    def constant(self, value: Value) -> Tensor | None:
        """Return the weight itself, detached, not copied; None when the value is no constant."""
        if value.role != "constant":
            return None
        node = self._program.node(value.key, value.name)
        return self._program.store.get(str(node.target)).detach()

    def replace(
        self,
        site: Replacement,
        op: StructuredOp,
        tensors: Mapping[str, Tensor | Value | None],
        attributes: Attributes | None = None,
    ) -> None:
        """Put `op` in the place of `site`; new tensors become parameters "<site's name>.<operand>".

        Raises:
            GraphError: when the site is not in this graph, or operands or attributes do not fit the op.
        """
        done = rewrite(self._program, site, op, tensors, attributes or {})
        if self._views is not None and not self._views.update(done.changed, done.added, done.erased):
            self._views = None

    def insert(
        self, op: StructuredOp, operands: Mapping[str, str], attributes: Attributes, before: str, name: str
    ) -> str:
        """Call `op` in front of the node of `before`; see `Graph.insert`."""
        node = insert(self._program, op, operands, attributes, before, name)
        self._views = None
        return node.name

    def expanded(self, ops: Collection[str]) -> "FxGraph":
        """Return a copy in which these ops are written out as `linear`; see `Graph.expanded`."""
        program = self._program.copy()
        expand(program, ops)
        return FxGraph(program, self._origin)

    def annotate(self, key: str, metadata: Mapping[str, str]) -> None:
        """Add metadata to the node that produces the value `key`; raises GraphError when there is none."""
        node = self._program.node(key, "annotate")
        node = node.args[0] if is_getitem(node) else node
        assert isinstance(node, fx.Node)
        merged = {**node.meta.get(METADATA, {}), **metadata}
        node.meta[METADATA] = merged
        if self._views is not None and node.name in self._views.nodes:
            self._views.nodes[node.name].metadata = merged

    def run(self, inputs: Inputs, taps: Sequence[str] = ()) -> tuple[Outputs, Tapped]:
        """Run without gradients; also return the contents of the tapped values.

        Raises:
            InputError: when the inputs do not fit.
            GraphError: when a tapped key is unknown.
        """
        return run_program(self._program, self._origin.signature.flat(inputs), taps)

    def evaluate(self, outputs: Sequence[str], given: Mapping[str, Tensor]) -> Sequence[Tensor]:
        """Run only the nodes between `given` and `outputs`.

        Raises:
            GraphError: when an output depends on a graph input that is not given.
        """
        return self.prepared(outputs, given)()

    def prepared(self, outputs: Sequence[str], given: Mapping[str, Tensor]) -> Callable[[], Sequence[Tensor]]:
        """Return what runs a part of the program; see `Graph.prepared`."""
        return prepared_part(self._program, outputs, given)

    def validate(self) -> None:
        """Check the graph's invariants.

        Raises:
            GraphError: naming what is broken.
        """
        self._program.validate()

    def copy(self) -> "FxGraph":
        """Return a copy that can be rewritten on its own; weights are shared."""
        return FxGraph(self._program.copy(), self._origin)

    def snapshot(self) -> Snapshot:
        """Return the program as plain data, without weights."""
        return snapshot_of(self)

    def _view(self) -> Views:
        if self._views is None:
            self._views = Views(self._program, self._origin.typer)
        return self._views


def _leaf(node: fx.Node, typer: Typer) -> Leaf:
    value = node.meta.get("val")
    if is_input(node):
        return Leaf(str(node.target), typer.type_of(value))
    return Leaf(str(node.target), None, value)


def _made_up(signature: Signature, values: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of the extents that the program was traced with, filled with zeros."""
    return signature.arguments([_concrete(value) for value in values])


def _concrete(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.zeros([_hint(extent) for extent in value.shape], dtype=value.dtype)
    return value if not isinstance(value, torch.SymInt) else _hint(value)


def _hint(extent: Any) -> int:
    if isinstance(extent, int):
        return extent
    return extent.node.hint if extent.node.has_hint() else 2
