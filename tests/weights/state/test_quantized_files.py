"""Quantised weights in files and state dicts are read as the numbers that they stand for."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

import esdmon
from esdmon.weights import discover
from tests.weights.state.readings import assert_same_reading


def pack(codes: Tensor, bits: int) -> Tensor:
    """Return rows of codes packed into int32, the lowest bits first."""
    grouped = codes.reshape(codes.shape[0], -1, 32 // bits).to(torch.int64)
    total = (grouped << torch.arange(0, 32, bits)).sum(dim=-1)
    return torch.where(total >= 2**31, total - 2**32, total).to(torch.int32)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("order", ["in order", "by activation"])
def test_gptq_is_read_as_what_it_stands_for(bits: int, order: str) -> None:
    """(q − z)·s, with the group of each input, in order or not."""
    generator = torch.Generator().manual_seed(0)
    inputs, outputs, groups = 64, 32, 4
    codes = torch.randint(0, 2**bits, (inputs, outputs), generator=generator)
    zeros = torch.randint(1, 2**bits, (groups, outputs), generator=generator)
    scales = torch.rand(groups, outputs, generator=generator) + 0.5
    group_of = torch.arange(inputs) // 16 if order == "in order" else torch.randperm(inputs, generator=generator) // 16
    weight = (codes - zeros[group_of]) * scales[group_of]
    state = {
        "q.qweight": pack(codes.T, bits).T.contiguous(),
        "q.qzeros": pack(zeros - 1, bits),
        "q.scales": scales,
        "q.g_idx": group_of.int(),
    }
    (matrix,) = discover(state).matrices
    assert matrix.name == "q"
    assert torch.allclose(matrix.read(), weight)
    assert discover(state).coverage.share == 1


def test_awq_is_read_as_what_it_stands_for() -> None:
    """Its codes lie side by side in another order, and its zero points are not shifted."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (64, 32), generator=generator)
    zeros = torch.randint(0, 16, (4, 32), generator=generator)
    scales = torch.rand(4, 32, generator=generator) + 0.5
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])  # output of each place, as AutoAWQ packs them

    def packed(values: Tensor) -> Tensor:
        return pack(values.reshape(len(values), -1, 8)[:, :, order].reshape(values.shape), 4)

    state = {"q.qweight": packed(codes), "q.qzeros": packed(zeros), "q.scales": scales}
    (matrix,) = discover(state).matrices
    group_of = torch.arange(64) // 16
    assert torch.allclose(matrix.read(), (codes - zeros[group_of]) * scales[group_of])


@pytest.mark.parametrize("scale", [(), (1,), (200, 1), (2, 1)])
def test_small_floats_are_read_with_their_scales(scale: tuple[int, ...], tmp_path: Path) -> None:
    """For the tensor, for each row, or for each block of 128."""
    codes, scales = torch.randn(200, 100).to(torch.float8_e4m3fn), torch.rand(scale) + 0.5
    save_file({"a.weight": codes, "a.weight_scale_inv": scales, "b.weight": codes.clone()}, tmp_path / "a.safetensors")
    read, unread = discover(esdmon.weights.open_checkpoint(tmp_path / "a.safetensors")).matrices
    spread = scales.repeat_interleave(128, 0)[:200] if scale == (2, 1) else scales
    assert torch.equal(read.read(), codes.float() * spread)
    assert "packed as torch.float8_e4m3fn, in a layout" in unread.unreadable


def test_experts_of_four_bits_in_blocks_are_read_as_in_their_module(tmp_path: Path) -> None:
    """GPT-OSS in MXFP4, against transformers' own unpacking."""
    state = {"mlp.experts.gate_up_proj_bias": torch.zeros(3, 64)}
    plain = dict(state)
    for name, rows, columns in (("gate_up_proj", 64, 96), ("down_proj", 96, 32)):
        blocks = torch.randint(0, 256, (3, rows, columns // 32, 16), dtype=torch.uint8)
        scales = torch.randint(118, 128, blocks.shape[:3], dtype=torch.uint8)
        state |= {f"mlp.experts.{name}_blocks": blocks, f"mlp.experts.{name}_scales": scales}
        plain[f"mlp.experts.{name}"] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    save_file(state, tmp_path / "a.safetensors")
    measures = ["spectral_norm", "frobenius_norm", "stable_rank"]  # fits turn on the last bits of so few codes
    report = esdmon.analyze(tmp_path / "a.safetensors", measures=measures)
    assert {layer.name.rpartition(".")[2] for layer in report} == {"gate_up_proj/gate", "gate_up_proj/up", "down_proj"}
    assert_same_reading(report, esdmon.analyze(plain, measures=measures))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weights_of_mlx_are_read_by_the_groups_of_their_configuration(bits: int, tmp_path: Path) -> None:
    """q·s + b, the lowest bits of a word first; without the configuration they are skipped."""
    codes, count = torch.randint(0, 2**bits, (48, 64)), 32 // bits
    scales, offsets = torch.rand(48, 2), torch.randn(48, 2)
    words = sum((codes[:, place::count] << (bits * place) for place in range(count)), torch.zeros(1, dtype=torch.int64))
    state = {"q.weight": words.to(torch.uint32), "q.scales": scales, "q.biases": offsets}
    save_file(state, tmp_path / "model.safetensors")
    weight = codes * scales.repeat_interleave(32, 1) + offsets.repeat_interleave(32, 1)
    (skipped,) = esdmon.analyze(tmp_path)
    assert (skipped.status, skipped.reason) == ("skipped", "packed numbers of an unknown layout: not read")
    (tmp_path / "config.json").write_text(json.dumps({"quantization": {"group_size": 32, "bits": bits}}))
    measures = ["spectral_norm", "frobenius_norm", "stable_rank"]
    assert_same_reading(
        esdmon.analyze(tmp_path, measures=measures), esdmon.analyze({"q.weight": weight}, measures=measures)
    )


def test_float8_without_a_scale_is_what_it_is(tmp_path: Path) -> None:
    """In a module that was cast, and in its file, whatever else is called a scale."""
    model = nn.Sequential(nn.Linear(40, 30), nn.Conv2d(12, 16, 3), nn.LayerNorm(30)).to(torch.float8_e4m3fn)
    state = model.state_dict() | {"norm.query_norm.scale": torch.ones(30)}
    save_file(state, tmp_path / "a.safetensors")
    plain = {name: tensor.float() for name, tensor in model.state_dict().items()}
    for source in (model, tmp_path / "a.safetensors"):
        assert_same_reading(esdmon.analyze(source), esdmon.analyze(plain))


def test_float8_with_a_scale_beside_it_is_not_read_without() -> None:
    """In a module of which the layout is not known."""
    layer = nn.Linear(40, 30).to(torch.float8_e4m3fn)
    layer.register_buffer("weight_scale_inv", torch.ones(5, 3))
    (report,) = esdmon.analyze(layer)
    assert (report.status, report.reason[:41]) == ("skipped", "packed as torch.float8_e4m3fn, in a layou")


def test_a_quantised_model_of_torchao_is_read_from_its_file(tmp_path: Path) -> None:
    """Its tensors are classes of its own, which are not made here."""
    quantization = pytest.importorskip("torchao.quantization")
    model = nn.Sequential(nn.Linear(64, 48))
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    torch.save(model.state_dict(), tmp_path / "a.pt")
    assert_same_reading(esdmon.analyze(tmp_path / "a.pt"), esdmon.analyze(model))


@pytest.fixture
def quantized_engine(monkeypatch: pytest.MonkeyPatch) -> str:
    """Choose the engine of torch's own quantisation; that of servers where there is one."""
    engines = torch.backends.quantized.supported_engines
    engine = "fbgemm" if "fbgemm" in engines else next(each for each in engines if each != "none")
    monkeypatch.setattr(torch.backends.quantized, "engine", engine)
    return engine


class Recurrent(nn.Module):
    """A linear layer, recurrent ones and a cell."""

    def __init__(self, *, bidirectional: bool) -> None:
        super().__init__()
        self.fc = nn.Linear(32, 24)
        self.lstm = nn.LSTM(32, 32, 2, bidirectional=bidirectional)
        self.gru = nn.GRU(24, 32, bidirectional=bidirectional)
        self.cell = nn.LSTMCell(24, 32)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.qint8, torch.float16])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_dynamic_quantisation_of_torch_is_read_from_module_and_file(
    *, bidirectional: bool, dtype: torch.dtype, tmp_path: Path, quantized_engine: str
) -> None:
    """Under the names of the layers before, with numbers that differ by the rounding."""
    if dtype is torch.float16 and quantized_engine != "fbgemm":
        pytest.skip("only fbgemm packs float16")
    model = Recurrent(bidirectional=bidirectional)
    kinds = {nn.Linear, nn.LSTM, nn.GRU, nn.LSTMCell}
    packed: Any = torch.ao.quantization.quantize_dynamic(model, kinds, dtype)  # type: ignore[no-untyped-call]
    torch.save(packed.state_dict(), tmp_path / "a.pt")
    before, after = esdmon.analyze(model), esdmon.analyze(packed)
    assert {layer.name for layer in before} == {layer.name for layer in after}
    for layer in before:
        name = layer.name
        assert after[name].measures["frobenius_norm"] == pytest.approx(layer.measures["frobenius_norm"], rel=0.01)
    assert after.coverage.share == 1
    for source in (tmp_path / "a.pt", packed.state_dict()):
        assert_same_reading(esdmon.analyze(source), after)


@pytest.mark.filterwarnings("ignore")
def test_static_quantisation_of_torch_is_read_from_module_and_file(tmp_path: Path, quantized_engine: str) -> None:
    """Of convolutions, fused or not, and linear layers."""
    quantization: Any = torch.ao.quantization
    model = nn.Sequential(
        quantization.QuantStub(), nn.Conv2d(12, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 36, 24)
    ).eval()
    model.qconfig = quantization.get_default_qconfig(quantized_engine)
    ready = quantization.prepare(quantization.fuse_modules(model, [["1", "2"]]))
    ready(torch.randn(2, 12, 8, 8))
    packed = quantization.convert(ready)
    torch.save(packed.state_dict(), tmp_path / "a.pt")
    report = esdmon.analyze(packed)
    assert [(layer.name, layer.slices) for layer in report] == [("1", 9), ("4", 1)]
    assert_same_reading(esdmon.analyze(tmp_path / "a.pt"), report)


def test_four_bits_of_bitsandbytes_are_read_from_a_file(tmp_path: Path) -> None:
    """By its own table and the largest number of each block, itself in 8 bits."""
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(64, 128)  # rows of whole blocks: 0.50.2 misreads others where the CPU has AVX-512
    packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=True)
    parts = {f"q.weight.{key.removeprefix('weight.')}": value for key, value in state.as_dict(packed=True).items()}
    save_file({"q.weight": packed, **parts}, tmp_path / "a.safetensors")
    (matrix,) = discover(esdmon.weights.open_checkpoint(tmp_path / "a.safetensors")).matrices
    assert torch.allclose(matrix.read(), functional.dequantize_4bit(packed, state), atol=1e-5)
