"""State dicts of models that bitsandbytes quantized to 8 bits, read layer by layer from safetensors files.

`Linear8bitLt` stores for each layer `<layer>.weight` (int8 codes, [out, in]), `<layer>.SCB` (largest magnitude of each
row, [out]) and, in newer versions, `<layer>.weight_format` (0: rows as they are).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from regraft.errors import ModelFileError, ModelNotFoundError, OptionError
from regraft.numerics.int8 import Quantized, from_bitsandbytes

_SCALES, _CODES, _FORMAT = ".SCB", (".weight", ".CB"), ".weight_format"


@dataclass(frozen=True)
class Int8State:
    """What a state dict holds, without its tensors.

    Attributes:
        source: the file or folder, for messages.
        files: the file that holds each tensor, by its name.
    """

    source: str
    files: Mapping[str, Path]

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers in 8 bits."""
        return tuple(name.removesuffix(_SCALES) for name in self.files if name.endswith(_SCALES))

    def layer_named(self, name: str) -> str | None:
        """Return the state dict's name of a layer, or None when it has no such layer in 8 bits.

        One may have a prefix that the other has not ("model.encoder.0" and "encoder.0").

        Raises:
            OptionError: when several names would do.
        """
        if name + _SCALES in self.files:
            return name
        close = [layer for layer in self.layers if layer.endswith(f".{name}") or name.endswith(f".{layer}")]
        if len(close) > 1:
            raise OptionError(f"{self.source}: the layer {name} could be any of {', '.join(close)}; one is needed")
        return close[0] if close else None

    def read(self, layer: str) -> Quantized:
        """Return a layer's weight.

        Raises:
            ModelFileError: when it is incomplete, or in a layout of some GPU.
            ShapeError, DtypeError: when its tensors are not what they should be.
        """
        codes = next((layer + ending for ending in _CODES if layer + ending in self.files), None)
        if codes is None:
            raise ModelFileError(f"{self.source}: {layer} has {layer}{_SCALES}, but no {layer}{_CODES[0]}")
        if layer + _FORMAT in self.files and int(self._tensor(layer + _FORMAT)) != 0:
            hint = "save it again with a recent bitsandbytes, which stores rows"
            found = int(self._tensor(layer + _FORMAT))
            raise ModelFileError(f"{self.source}: {layer}{_FORMAT} must be 0 (rows); got {found}", hint=hint)
        return from_bitsandbytes(self._tensor(codes), self._tensor(layer + _SCALES))

    def dequantized(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor by name, weights in 8 bits restored: what `nn.Module.load_state_dict` takes."""
        hidden = {layer + ending for layer in self.layers for ending in (_SCALES, _FORMAT, *_CODES)}
        for name in self.files:
            if name not in hidden:
                yield name, self._tensor(name)
        for layer in self.layers:
            yield f"{layer}.weight", self.read(layer).dequantize()

    def _tensor(self, name: str) -> Tensor:
        with _opened(self.files[name]) as content:
            return content.get_tensor(name)


def open_state(source: str | Path) -> Int8State:
    """Return what a .safetensors file, or all of those in a folder, hold.

    Raises:
        ModelNotFoundError: when there is no such file or folder, or none in the folder.
        OptionError: for a file of another kind.
        ModelFileError: when a file is malformed, or holds no layer in 8 bits.
    """
    path = Path(source)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files or not path.exists():
        what = "has no .safetensors file" if path.is_dir() else "does not exist"
        raise ModelNotFoundError(f"state {path} {what}")
    if files == [path] and path.suffix != ".safetensors":
        hint = "load it where it comes from, and save it with safetensors.torch.save_file"
        raise OptionError(f"state {path}: a .safetensors file, or a folder of them, is needed", hint=hint)
    found: dict[str, Path] = {}
    for file in files:
        with _opened(file) as content:
            found |= dict.fromkeys(content.keys(), file)
    if not any(name.endswith(_SCALES) for name in found):
        raise ModelFileError(f"state {path} holds no layer in 8 bits: no tensor's name ends in {_SCALES}")
    return Int8State(str(path), found)


def _opened(file: Path) -> safe_open:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{file} is not a safetensors file: {error}") from error
