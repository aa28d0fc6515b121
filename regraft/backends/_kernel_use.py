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
        tuned: whether the kernel's tiles come from records.
    """

    node: str
    site: str
    op: str
    kernel: str | None
    reason: str = ""
    tuned: bool = False

    def __str__(self) -> str:
        where = self.site or self.node
        tiles = ", tuned" if self.tuned else ""
        return (
            f"{where}: {self.op} on {self.kernel}{tiles}"
            if self.kernel
            else f"{where}: {self.op} as it is: {self.reason}"
        )
