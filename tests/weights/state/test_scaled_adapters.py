"""Adapters in files: the scale that their configuration, or a tensor beside them, gives to their factors."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn

import esdmon
from esdmon.errors import InputError
from tests.weights.state.readings import assert_same_reading


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
    "FourierFT": lambda: peft.FourierFTConfig(n_frequency=30, target_modules=["q"]),
    "SHiRA": lambda: peft.ShiraConfig(r=4, target_modules=["q"]),
}


@pytest.mark.parametrize("kind", OTHER_ADAPTERS)
def test_factors_of_other_adapters_are_no_weights(kind: str, tmp_path: Path) -> None:
    """Neither in the module, of which the base is read, nor in the folder, which is refused with its kind."""
    config = OTHER_ADAPTERS[kind]()
    model = peft.get_peft_model(Net(), config)
    assert [layer.name for layer in esdmon.analyze(model)] == ["conv", "q", "v"]
    model.save_pretrained(str(tmp_path))
    message = rf"an adapter of the kind {config.peft_type.value} of peft, .* Merge it into its model, and read that"
    with pytest.raises(InputError, match=message):
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
