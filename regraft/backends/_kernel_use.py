"""Which structured op of an executable runs on what."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KernelUse:
    """One structured op of a program.

    Attributes:
        node: key of the node.
        site: name of the layer in the user's model; "" when unknown.
        op: the structured op.
        kernel: what it runs on ("tvm"); None where it keeps its composite form.
        reason: why it keeps it; "" where it has a kernel.
    """

    node: str
    site: str
    op: str
    kernel: str | None
    reason: str = ""

    def __str__(self) -> str:
        where = self.site or self.node
        return f"{where}: {self.op} on {self.kernel}" if self.kernel else f"{where}: {self.op} as it is: {self.reason}"
