"""GGUF files, written by the library of llama.cpp."""

import sys
from pathlib import Path

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from torch import Tensor

import esdmon
from esdmon.errors import InputError
from esdmon.weights import open_checkpoint

TYPES = {
    "blk.0.attn_q.weight": ((64, 96), GGMLQuantizationType.F32),
    "blk.0.attn_k.weight": ((32, 96), GGMLQuantizationType.F16),
    "blk.0.attn_v.weight": ((32, 96), GGMLQuantizationType.BF16),
    "blk.0.ffn_up.weight": ((128, 96), GGMLQuantizationType.Q8_0),
    "blk.10.ffn_down.weight": ((96, 128), GGMLQuantizationType.Q4_0),
    "blk.10.ffn_gate_exps.weight": ((4, 48, 96), GGMLQuantizationType.Q8_0),
    "blk.2.attn_norm.weight": ((96,), GGMLQuantizationType.F32),
    "token_embd.weight": ((200, 96), GGMLQuantizationType.Q8_0),
    "output.weight": ((200, 96), GGMLQuantizationType.F16),
}
PRECISION = {"Q8_0": 0.01, "Q4_0": 0.1, "F16": 1e-3, "BF16": 1e-2, "F32": 0.0}
"""Distance between a weight and what it is read as, relative to its norm, at most."""


def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, (shape, _) in TYPES.items()}


def write(path: Path) -> Path:
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(11)
    for name, tensor in weights().items():
        kind = TYPES[name][1]
        packed = gguf.quantize(tensor.numpy(), kind)
        is_plain = kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16)
        writer.add_tensor(name, packed, raw_dtype=None if is_plain else kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_what_packed_numbers_stand_for(tmp_path: Path) -> None:
    """Shapes as in torch, close to what was packed, in the order of the layers."""
    checkpoint, originals = open_checkpoint(write(tmp_path / "model.gguf")), weights()
    assert checkpoint.keys() == originals.keys()
    for name, original in originals.items():
        limit = PRECISION[TYPES[name][1].name]
        assert checkpoint[name].shape == original.shape
        assert torch.dist(checkpoint[name].float(), original) <= limit * original.norm()
    assert [checkpoint[f"blk.0.attn_{letter}.weight"].dtype for letter in "qkv"] == [
        torch.float32,
        torch.float16,
        torch.bfloat16,
    ]


def test_the_matrices_of_a_file(tmp_path: Path) -> None:
    """Experts are a stack; embeddings and the head, which is as wide, are left out as in any model."""
    report = esdmon.analyze(write(tmp_path / "model.gguf"))
    assert {layer.name: (layer.N, layer.M, layer.slices) for layer in report} == {
        "blk.0.attn_q": (96, 64, 1),
        "blk.0.attn_k": (96, 32, 1),
        "blk.0.attn_v": (96, 32, 1),
        "blk.0.ffn_up": (128, 96, 1),
        "blk.10.ffn_down": (128, 96, 1),
        "blk.10.ffn_gate_exps": (96, 48, 4),
    }
    assert {layer.status for layer in report} == {"ok"}
    reasons = {skipped.name: skipped.reason for skipped in report.coverage.skipped}
    assert reasons["blk.2.attn_norm.weight"] == "vectors"
    assert "embeddings" in reasons["token_embd.weight"]
    assert "output heads" in reasons["output.weight"]
    original = esdmon.analyze({"blk.0.attn_q.weight": weights()["blk.0.attn_q.weight"]})["blk.0.attn_q"]
    assert dict(report["blk.0.attn_q"].measures) == pytest.approx(dict(original.measures), rel=0, nan_ok=True)


def test_a_folder_of_one_file(tmp_path: Path) -> None:
    """Two of them are two versions of a model, as a rule."""
    write(tmp_path / "model-Q8_0.gguf")
    assert len(esdmon.analyze(tmp_path)) == 6
    write(tmp_path / "model-Q4_0.gguf")
    with pytest.raises(InputError, match=r"contains 2 checkpoints. Pass one of them, such as model-Q4_0.gguf or"):
        esdmon.analyze(tmp_path)


@pytest.mark.parametrize("keep", [4, 40, 600])
def test_a_truncated_file(keep: int, tmp_path: Path) -> None:
    """One clear line."""
    path = write(tmp_path / "model.gguf")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"model.gguf is truncated or not a GGUF file: ") as caught:
        esdmon.analyze(path)
    assert "\n" not in str(caught.value)


def test_the_library_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its absence is one sentence with the way to get it."""
    path = write(tmp_path / "model.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError, match=r'needs the package gguf: python -m pip install "esdmon\[gguf\]"'):
        open_checkpoint(path)
