"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="An .onnx file, or package.module:function that makes a PyTorch model.")
]
InputsOption = Annotated[
    Path | None, typer.Option("--inputs", metavar="FILE.npz", help="Example inputs, as named arrays.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
