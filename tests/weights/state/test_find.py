"""A state dict, or a file of it, is read as the module is: the same names, shapes and numbers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import prune

import esdmon
from esdmon.errors import InputError
from esdmon.weights import discover
from tests.weights.state.readings import assert_same_reading


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


def pruned_norms() -> nn.Module:
    cut: Any = prune
    return nn.Sequential(
        cut.l1_unstructured(nn.utils.spectral_norm(nn.Linear(24, 30)), "weight_orig", amount=0.5),
        cut.l1_unstructured(nn.utils.weight_norm(nn.Linear(30, 24)), "weight_v", amount=0.5),
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
    "pruned, and then normalised": pruned_norms,
    "recurrent": lambda: nn.ModuleList(
        [nn.LSTM(15, 20, proj_size=12), nn.GRU(15, 20, bidirectional=True), nn.RNN(15, 20)]
    ),
    "attention": lambda: nn.Sequential(nn.MultiheadAttention(24, 4), nn.MultiheadAttention(24, 4, kdim=20, vdim=18)),
    "grey images": lambda: nn.Sequential(nn.Conv2d(1, 12, 5), nn.Conv2d(12, 16, 5), nn.Linear(64, 20)),
    "groups": Bottleneck,
    "what is no weight": lambda: nn.Sequential(Noisy()),
    "an embedding": lambda: nn.ModuleDict({"embed_proj": nn.Linear(20, 30), "tok_embed": nn.Embedding(50, 20)}),
}


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
    "pos": (torch.ones(1, 50, 64), "3-D parameters of unknown layout, which a plugin can read"),
    "snake.alpha": (torch.ones(1, 24, 1), "vectors"),
    "norm.gamma": (torch.ones(24, 1, 1, 1), "vectors"),
    "mixer.A_log": (torch.ones(64, 16), "logarithms of a diagonal"),
    "head.tril": (torch.ones(64, 64).tril(), "masks"),
    "attn.causal": (torch.ones(64, 64).tril(), "masks"),
    "relative_position_index": (torch.ones(49, 49, dtype=torch.int64), "tables of constants"),
    "position_map": (torch.ones(49, 49, dtype=torch.int64), "integers"),
    "q.forward_hadamard_matrix": (torch.ones(32, 32), "tables of constants"),
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
    "GLoRA of LyCORIS 4.1.3": (
        {
            **{f"lora_unet_q.{name}.weight": torch.ones(30, 20) for name in ("a1", "a2", "b1", "b2")},
            "lora_unet_q.alpha": torch.tensor(8.0),
        },
        "factors of an adapter other than LoRA",
    ),
    "integers of I-BERT": ({"fc.weight_integer": torch.ones(30, 20)}, "integers beside the weight that they stand for"),
}


@pytest.mark.parametrize("kind", BESIDE)
def test_what_quantisation_and_adapters_keep_beside_a_weight_is_no_matrix(kind: str) -> None:
    """Known by its neighbours."""
    state, reason = BESIDE[kind]
    report = esdmon.analyze({"fc.weight": torch.randn(30, 20), **state})
    assert [layer.name for layer in report] == ["fc"]
    assert {skip.name: skip.reason for skip in report.coverage.skipped}[next(iter(state))] == reason


@pytest.mark.parametrize("names", [("_orig_mod.fc.weight", "fc.weight"), ("fc.weight", "_orig_mod.fc.weight")])
def test_two_weights_of_one_name_without_wrappers_are_both_read(names: tuple[str, str]) -> None:
    """The one that has a wrapper in its name keeps it."""
    state = {name: torch.randn(30, 20) for name in names}
    norms = {layer.name: layer.measures["frobenius_norm"] for layer in esdmon.analyze(state)}
    assert norms == {name.removesuffix(".weight"): pytest.approx(float(state[name].norm())) for name in names}


def test_names_that_are_equal_as_texts_are_refused() -> None:
    """One of the two would be missing without a word."""
    mapping: Any = {1: torch.randn(30, 20), "1": torch.randn(30, 20)}
    with pytest.raises(InputError, match="contains two tensors named '1'"):
        esdmon.analyze(mapping)


@pytest.mark.parametrize(("codes", "scales"), [("qweight", "wscales"), ("qweight", "scaled_zeros"), ("B", "s")])
def test_scales_beside_packed_weights_are_no_matrices(codes: str, scales: str) -> None:
    """As Nunchaku, AWQ and Marlin name them, of which the weights themselves are not read."""
    packed = torch.ones(8, 64, dtype=torch.int32)
    report = esdmon.analyze({"fc.weight": torch.randn(30, 20), f"q.{codes}": packed, f"q.{scales}": torch.ones(16, 64)})
    assert [layer.name for layer in report if layer.status == "ok"] == ["fc"]
    assert {skip.name: skip.reason for skip in report.coverage.skipped}[f"q.{scales}"] == "scales of packed weights"


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


@pytest.mark.parametrize("architecture", ["vit_tiny_patch16_224", "maxvit_tiny_tf_224", None])
def test_qkv_of_timm_is_split_where_the_training_state_names_the_architecture(
    architecture: str | None, tmp_path: Path
) -> None:
    """As those of timm's `CheckpointSaver` and of scripts after PyTorch's example do; of an averaged copy too."""
    model = {"attn.qkv.weight": torch.randn(72, 24), "attn.proj.weight": torch.randn(24, 24)}
    ema = {name: weight.clone() for name, weight in model.items()}
    path = tmp_path / "last.pth.tar"
    torch.save({"epoch": 2, "arch": architecture, "state_dict": model, "state_dict_ema": ema}, path)
    names = ["attn.qkv/q", "attn.qkv/k", "attn.qkv/v"] if architecture == "vit_tiny_patch16_224" else ["attn.qkv"]
    found = {layer.name for layer in esdmon.analyze(path)}
    assert {*names, "attn.proj"} == {name for name in found if not name.startswith("state_dict_ema.")}
    assert {f"state_dict_ema.{name}" for name in names} <= found


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


@pytest.mark.parametrize("names", [("a.weight.weight", "a.weight", "a"), ("a", "a.weight", "a.weight.weight")])
def test_each_matrix_has_a_name_of_its_own(names: tuple[str, ...]) -> None:
    """Also where the shorter names of two are taken."""
    matrices = discover({name: torch.randn(30, 20) for name in names}).matrices
    assert len({matrix.name for matrix in matrices}) == len(matrices) == len(names)


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
