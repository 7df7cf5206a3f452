"""A state dict, or a file of it, is read as the module is: the same names, shapes and numbers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import prune
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

import esdmon
from esdmon.errors import InputError
from esdmon.records import Report
from esdmon.weights import discover


def pruned() -> nn.Module:
    layer = nn.LSTM(16, 20)
    cut: Any = prune
    cut.random_unstructured(layer, "weight_hh_l0", amount=0.5)
    return nn.Sequential(cut.l1_unstructured(nn.Linear(64, 48), "weight", amount=0.8), layer)


def old_norms() -> nn.Module:
    return nn.Sequential(
        nn.utils.weight_norm(nn.Conv1d(20, 24, 3)),
        nn.utils.weight_norm(nn.Linear(24, 30), dim=1),
        nn.utils.spectral_norm(nn.ConvTranspose2d(20, 30, 3)),
    )


def new_norms() -> nn.Module:
    new = nn.utils.parametrizations
    return nn.Sequential(
        new.weight_norm(nn.Linear(24, 30)),
        new.weight_norm(nn.Conv2d(20, 24, 3), dim=1),
        new.spectral_norm(nn.Linear(30, 24)),
    ).eval()


class Bottleneck(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3)
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(64, 48, 1), nn.Conv2d(48, 48, 3, groups=4), nn.Conv2d(48, 64, 1)
        self.depthwise, self.point = nn.Conv2d(64, 64, 5, groups=64), nn.Conv2d(64, 32, 1)
        self.shortcut = nn.Conv2d(64, 64, 1)


class Noisy(nn.Linear):
    def __init__(self) -> None:
        super().__init__(30, 24)
        self.weight_sigma = nn.Parameter(torch.rand(24, 30))
        self.register_buffer("weight_epsilon", torch.randn(24, 30))
        self.register_buffer("attn_mask", torch.randn(24, 24))
        self.register_buffer("grid", torch.randn(24, 24))
        self.cls_token = nn.Parameter(torch.randn(1, 20, 24))
        self.spline = nn.Parameter(torch.randn(12, 20, 24))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "pruned": pruned,
    "old norms": old_norms,
    "new norms": new_norms,
    "recurrent": lambda: nn.ModuleList(
        [nn.LSTM(15, 20, proj_size=12), nn.GRU(15, 20, bidirectional=True), nn.RNN(15, 20)]
    ),
    "attention": lambda: nn.Sequential(nn.MultiheadAttention(24, 4), nn.MultiheadAttention(24, 4, kdim=20, vdim=18)),
    "grey images": lambda: nn.Sequential(nn.Conv2d(1, 12, 5), nn.Conv2d(12, 16, 5), nn.Linear(64, 20)),
    "groups": Bottleneck,
    "what is no weight": lambda: nn.Sequential(Noisy()),
    "an embedding": lambda: nn.ModuleDict({"embed_proj": nn.Linear(20, 30), "tok_embed": nn.Embedding(50, 20)}),
}


def assert_same_reading(report: Report, expected: Report) -> None:
    assert {layer.name for layer in report} == {layer.name for layer in expected}
    for layer in report:
        other = expected[layer.name]
        assert (layer.N, layer.M, layer.slices, layer.status) == (other.N, other.M, other.slices, other.status)
        assert layer.measures == pytest.approx(other.measures, rel=1e-4, nan_ok=True)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("kind", MODELS)
def test_a_state_dict_is_read_as_its_module(kind: str, tmp_path: Path) -> None:
    """Also from a file, and under the names of wrappers."""
    torch.manual_seed(0)
    model = MODELS[kind]()
    expected = esdmon.analyze(model, measures=["alpha", "lambda_max"])
    wrapped = {f"module._orig_mod.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"epoch": 1, "state_dict": wrapped}, tmp_path / "a.pth.tar")
    for source in (model.state_dict(), tmp_path / "a.pth.tar"):
        assert_same_reading(esdmon.analyze(source, measures=["alpha", "lambda_max"]), expected)


MASKED = {
    "h.0.attn.bias": (torch.ones(1, 1, 64, 64), "biases"),
    "attn.mask": (torch.ones(64, 64), "masks"),
    "experts.gate_up_proj_bias": (torch.ones(32, 64), "biases"),
    "pos": (torch.ones(1, 50, 64), "3-D parameters of unknown layout"),
    "snake.alpha": (torch.ones(1, 24, 1), "vectors"),
    "norm.gamma": (torch.ones(24, 1, 1, 1), "vectors"),
    "mixer.A_log": (torch.ones(64, 16), "logarithms of a diagonal"),
    "relative_position_index": (torch.ones(49, 49, dtype=torch.int64), "tables of constants"),
    "position_map": (torch.ones(49, 49, dtype=torch.int64), "integers"),
    "mel_scale.fb": (torch.ones(201, 128), "tables of constants"),
    "model_ema.diffusion_modelfc1weight": (torch.ones(30, 20), "an averaged copy, under names without dots"),
    "x.hada_w1_a": (torch.ones(30, 20), "factors of an adapter other than LoRA"),
}


@pytest.mark.parametrize("name", MASKED)
def test_what_is_no_weight_is_named_in_the_coverage(name: str) -> None:
    """With its reason."""
    tensor, reason = MASKED[name]
    report = esdmon.analyze({"fc.weight": torch.randn(30, 20), name: tensor})
    assert [layer.name for layer in report] == ["fc"]
    assert {skip.name: skip.reason for skip in report.coverage.skipped} == {name: reason}


BESIDE: dict[str, tuple[dict[str, Tensor], str]] = {
    "codebooks of VPTQ": (
        {"q.centroids.weight": torch.ones(1, 4096), "q.indices": torch.ones(1, 64, 32, dtype=torch.int32)},
        "codebooks of packed weights",
    ),
    "integers of I-BERT": ({"fc.weight_integer": torch.ones(30, 20)}, "integers beside the weight that they stand for"),
}


@pytest.mark.parametrize("kind", BESIDE)
def test_what_quantisation_keeps_beside_a_weight_is_no_matrix(kind: str) -> None:
    """Known by its neighbours."""
    state, reason = BESIDE[kind]
    report = esdmon.analyze({"fc.weight": torch.randn(30, 20), **state})
    assert [layer.name for layer in report] == ["fc"]
    assert {skip.name: skip.reason for skip in report.coverage.skipped}[next(iter(state))] == reason


def test_the_extra_state_of_modules_is_passed_over() -> None:
    """Of any type, and the notes that libraries write into a state dict."""
    state: Any = {"fc.weight": torch.randn(30, 20), "fc._extra_state": {"scale": 1.0}, "_metadata": {"n": 3}}
    assert [layer.name for layer in esdmon.analyze(state)] == ["fc"]


register: Any = nn.utils.parametrize.register_parametrization
UNKNOWN: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "orthogonal": (lambda: nn.utils.parametrizations.orthogonal(nn.Linear(20, 20)), "orthogonal by a map"),
    "of a user": (
        lambda: register(nn.Linear(20, 20), "weight", nn.Softplus()),
        "a parametrisation that the file does not describe",
    ),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_a_parametrisation_that_is_not_in_the_file_is_skipped(kind: str) -> None:
    """What acts cannot be known."""
    make, reason = UNKNOWN[kind]
    state = nn.ModuleDict({"odd": make(), "good": nn.Linear(20, 30)}).state_dict()
    report = esdmon.analyze(state)
    assert (report["good"].status, report["odd"].status) == ("ok", "skipped")
    assert reason in report["odd"].reason
    assert "odd.parametrizations.weight.original" in {skip.name for skip in report.coverage.skipped}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb, self.conv = nn.Embedding(60, 24), nn.Conv2d(20, 30, 3)
        self.q, self.v = nn.Linear(24, 32), nn.Linear(24, 40)


ADAPTERS: dict[str, dict[str, Any]] = {
    "plain": {"lora_alpha": 64, "target_modules": ["q", "v"]},
    "rslora": {"lora_alpha": 64, "use_rslora": True, "target_modules": ["q"]},
    "patterns": {"lora_alpha": 8, "target_modules": ["q", "v"], "alpha_pattern": {"v": 40}, "rank_pattern": {"q": 12}},
    "dora": {"lora_alpha": 32, "use_dora": True, "target_modules": ["q"]},
    "convolution and embedding": {"lora_alpha": 32, "target_modules": ["conv", "emb"]},
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_has_the_scale_of_its_configuration(kind: str, tmp_path: Path) -> None:
    """A folder of peft gives the changes that its module has."""
    torch.manual_seed(0)
    model = peft.get_peft_model(Net(), peft.LoraConfig(r=16, **ADAPTERS[kind]))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(str(tmp_path))
    expected = esdmon.analyze(model, layers=["*/lora.default"], measures=["spectral_norm"])
    report = esdmon.analyze(tmp_path, measures=["spectral_norm"])
    assert_same_reading(report, expected)
    assert all(layer.status == "ok" and layer.view == "lora-delta" for layer in report)


def test_a_convolution_of_kohya_in_three_steps_is_one_change() -> None:
    """1 × 1, k × k among r channels, and 1 × 1."""
    down, middle, up = torch.randn(12, 20, 1, 1), torch.randn(12, 12, 3, 3), torch.randn(30, 12, 1, 1)
    state = {"c.lora_down.weight": down, "c.lora_mid.weight": middle, "c.lora_up.weight": up}
    (report,) = esdmon.analyze(state | {"c.alpha": torch.tensor(6.0), "c.dora_scale": torch.ones(1, 20)})
    change = torch.einsum("or,rskl,si->oikl", up[..., 0, 0], middle, down[..., 0, 0]).flatten(1) / 2
    assert (report.name, report.N, report.M) == ("c/lora", 180, 12)
    assert report.measures["spectral_norm"] == pytest.approx(float(torch.linalg.matrix_norm(change, 2)), rel=1e-4)


@pytest.mark.parametrize("part", ["lora_mid.weight", "lora_up.weight"])
def test_factors_that_do_not_fit_are_skipped(part: str) -> None:
    """With their shapes in the reason."""
    state = {"lora_down.weight": torch.randn(12, 20, 1, 1), "lora_mid.weight": torch.randn(12, 12, 3, 3)}
    state |= {"lora_up.weight": torch.randn(30, 12, 1, 1)}
    state[part] = torch.randn(30, 11, 1, 1)
    (report,) = esdmon.analyze({f"c.{name}": tensor for name, tensor in state.items()})
    assert report.status == "skipped"
    assert "(30, 11" in report.reason


def test_an_adapter_of_adalora_has_its_singular_values_and_scale(tmp_path: Path) -> None:
    """As a module, where ΔW is what peft adds, and as a folder."""
    torch.manual_seed(0)
    config = peft.AdaLoraConfig(init_r=16, target_r=12, total_step=9, lora_alpha=40, target_modules=["q"])
    model: Any = peft.get_peft_model(Net(), config)
    nn.init.normal_(model.base_model.model.q.lora_E["default"])
    model.save_pretrained(str(tmp_path))
    expected = esdmon.analyze(model, layers=["*/lora.default"], measures=["spectral_norm"])
    delta = model.base_model.model.q.get_delta_weight("default").detach()
    norm = expected["q/lora.default"].measures["spectral_norm"]
    assert norm == pytest.approx(float(torch.linalg.matrix_norm(delta, 2)), rel=1e-5)
    assert_same_reading(esdmon.analyze(tmp_path, measures=["spectral_norm"]), expected)


OTHER_ADAPTERS: dict[str, Callable[[], Any]] = {
    "LoHa": lambda: peft.LoHaConfig(r=16, target_modules=["q", "conv"]),
    "LoKr": lambda: peft.LoKrConfig(r=16, target_modules=["q"]),
    "VeRA": lambda: peft.VeraConfig(r=16, target_modules=["q"]),
    "OFT": lambda: peft.OFTConfig(r=0, oft_block_size=8, target_modules=["q"]),
    "HRA": lambda: peft.HRAConfig(r=16, target_modules=["q"]),
    "IA3": lambda: peft.IA3Config(target_modules=["q"], feedforward_modules=[]),
    "VBLoRA": lambda: peft.VBLoRAConfig(num_vectors=20, vector_length=8, target_modules=["q"]),
}


@pytest.mark.parametrize("kind", OTHER_ADAPTERS)
def test_factors_of_other_adapters_are_no_weights(kind: str, tmp_path: Path) -> None:
    """Neither in the module, of which the base is read, nor in the folder, which is refused for what it holds."""
    model = peft.get_peft_model(Net(), OTHER_ADAPTERS[kind]())
    assert [layer.name for layer in esdmon.analyze(model)] == ["conv", "q", "v"]
    model.save_pretrained(str(tmp_path))
    with pytest.raises(InputError, match="its parameters are factors of an adapter other than LoRA"):
        esdmon.analyze(tmp_path)


def test_an_adapter_of_kohya_has_its_own_scale() -> None:
    """alpha/r, of a linear layer and of a convolution."""
    up, down = torch.randn(40, 12), torch.randn(12, 30)
    state = {
        "unet_a.lora_up.weight": up,
        "unet_a.lora_down.weight": down,
        "unet_a.alpha": torch.tensor(6.0),
        "unet_b.lora_up.weight": up[:, :, None, None],
        "unet_b.lora_down.weight": down.reshape(12, 10, 3, 1),
    }
    report = esdmon.analyze(state)
    norm = float(torch.linalg.matrix_norm(up @ down, 2))
    assert [layer.name for layer in report] == ["unet_a/lora", "unet_b/lora"]
    assert report["unet_a/lora"].measures["spectral_norm"] == pytest.approx(norm / 2, rel=1e-5)
    assert report["unet_b/lora"].measures["spectral_norm"] == pytest.approx(norm, rel=1e-5)


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


@pytest.mark.parametrize(
    ("architecture", "is_split"),
    [
        ("vit_tiny_patch16_224", True),
        ("vit_relpos_small_patch16_224", True),
        ("swinv2_tiny_window8_256", True),
        ("vit_dwee_patch16_reg1_gap_256", False),
        ("maxvit_tiny_tf_224", False),
        ("tiny_vit_5m_224", False),
        ("", False),
    ],
)
def test_qkv_of_timm_is_split_where_its_configuration_names_the_architecture(
    architecture: str, *, is_split: bool, tmp_path: Path
) -> None:
    """In others the parts alternate by head, or heads have two q and two k."""
    save_file(
        {"attn.qkv.weight": torch.randn(72, 24), "attn.proj.weight": torch.randn(24, 24)},
        tmp_path / "model.safetensors",
    )
    (tmp_path / "config.json").write_text(json.dumps({"architecture": architecture}))
    names = ["attn.qkv/q", "attn.qkv/k", "attn.qkv/v"] if is_split else ["attn.qkv"]
    assert sorted(layer.name for layer in esdmon.analyze(tmp_path)) == sorted(["attn.proj", *names])


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


def test_experts_are_split_by_the_sides_of_their_neighbours() -> None:
    """Gate and up-projection lie along the side that the down-projection has half of; alternating with biases."""
    up, down = torch.randn(4, 24, 60), torch.randn(4, 30, 24)
    state = {"mlp.experts.gate_up_proj": up, "mlp.experts.down_proj": down}
    biased = state | {"mlp.experts.gate_up_proj_bias": torch.ones(4, 60)}
    for given, expected in ((state, up[:, :, :30]), (biased, up[:, :, ::2])):
        matrices = {matrix.name: matrix for matrix in discover(given).matrices}
        assert set(matrices) == {
            "mlp.experts.gate_up_proj/gate",
            "mlp.experts.gate_up_proj/up",
            "mlp.experts.down_proj",
        }
        gate = matrices["mlp.experts.gate_up_proj/gate"]
        assert torch.equal(gate.to_stack(gate.read()), expected)


def test_a_configuration_says_how_heads_alternate(tmp_path: Path) -> None:
    """Bloom stores q, k and v of one head, then those of the next; without the configuration it is one matrix."""
    save_file({"h.0.query_key_value.weight": torch.randn(96, 32)}, tmp_path / "model.safetensors")
    assert [layer.name for layer in esdmon.analyze(tmp_path)] == ["h.0.query_key_value"]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bloom", "n_head": 4, "hidden_size": 32}))
    assert [layer.name for layer in esdmon.analyze(tmp_path)] == [f"h.0.query_key_value/{part}" for part in "qkv"]


def test_two_names_that_differ_by_weight_are_both_read() -> None:
    """`proj`, a parameter, beside `proj.weight`, that of a layer."""
    report = esdmon.analyze({"proj": torch.randn(30, 20), "proj.weight": torch.randn(40, 20)})
    assert [(layer.name, layer.N) for layer in report] == [("proj", 30), ("proj.weight", 40)]


def moe() -> Any:
    return transformers.MixtralModel(transformers.MixtralConfig(**SIZES, num_local_experts=4, num_key_value_heads=2))


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 90}
SAVED: dict[str, Callable[[], Any]] = {
    "Mixtral": moe,
    "Qwen2Moe": lambda: transformers.Qwen2MoeModel(
        transformers.Qwen2MoeConfig(**SIZES, num_experts=4, num_key_value_heads=2, moe_intermediate_size=24)
    ),
    "ViT": lambda: transformers.ViTModel(transformers.ViTConfig(**SIZES, image_size=32, patch_size=4)),
    "GPT-NeoX": lambda: transformers.GPTNeoXModel(transformers.GPTNeoXConfig(**SIZES)),
    "Phi-3": lambda: transformers.Phi3Model(transformers.Phi3Config(**SIZES, num_key_value_heads=2, pad_token_id=0)),
    "T5": lambda: transformers.T5Model(transformers.T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)),
    "ConvNeXt": lambda: transformers.ConvNextModel(
        transformers.ConvNextConfig(hidden_sizes=[24, 48], depths=[1, 1], num_stages=2)
    ),
    "Mamba": lambda: transformers.MambaModel(
        transformers.MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=90)
    ),
}


@pytest.mark.parametrize("architecture", SAVED)
def test_a_folder_of_transformers_is_read_as_its_module(architecture: str, tmp_path: Path) -> None:
    """Where `save_pretrained` renames, or stores experts apart, too."""
    torch.manual_seed(0)
    model = SAVED[architecture]()
    model.save_pretrained(tmp_path)
    expected = esdmon.analyze(model, measures=["lambda_max"])
    assert_same_reading(esdmon.analyze(tmp_path, measures=["lambda_max"]), expected)
