"""LoRA layers as peft makes them: base, delta and sum, each under its own view."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import esdmon
from esdmon.spectrum import Phase
from esdmon.weights import Selection, discover, read_spectrum

RANK, SCALING = 12, 2.0


class Block(nn.Module):
    """A linear layer, one of HF's transposed kind, a convolution and an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(40, 70)
        self.down = Conv1D(30, 70)
        self.conv = nn.Conv2d(16, 20, 3)
        self.table = nn.Embedding(50, 40)
        self.plain = nn.Linear(30, 30)


def adapted(targets: list[str], *, rank: int = RANK, **options: Any) -> Any:
    """A peft model whose adapters have been trained, as far as their spectra go."""
    torch.manual_seed(0)
    options = {"init_lora_weights": False} | options
    config = peft.LoraConfig(r=rank, lora_alpha=int(rank * SCALING), target_modules=targets, **options)
    return peft.get_peft_model(Block(), config)


def by_hand(weight: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    sigma = torch.linalg.svdvals(weight.detach().double()).numpy()
    return np.sort(sigma**2) / max(weight.shape)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("target", ["up", "down", "conv", "table"])
def test_a_delta_has_the_spectrum_of_its_product(target: str) -> None:
    """The nonzero part of s·B·A, written out as the large matrix that it never is; names are the author's."""
    model = adapted([target])
    matrices = {matrix.name: matrix for matrix in discover(model, selection=Selection(["*"])).matrices}
    assert set(matrices) == {"up", "down", "conv", "table", "plain", f"{target}/lora.default"}
    layer = model.get_submodule(f"base_model.model.{target}")
    delta = layer.get_delta_weight("default").flatten(1)
    spectrum = read_spectrum(matrices[f"{target}/lora.default"], precision="exact")
    assert spectrum.shape == (max(delta.shape), RANK)
    assert np.allclose(spectrum.eigenvalues, by_hand(delta)[-RANK:], rtol=1e-5)
    assert spectrum.view == "lora-delta"
    base = read_spectrum(matrices[target], precision="exact")
    assert base.view == "base"
    assert base.eigenvalues.sum() * base.n == pytest.approx(float(layer.base_layer.weight.detach().square().sum()))
    assert read_spectrum(matrices["plain"]).view == "weight"


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("target", ["up", "down"])
def test_the_sum_is_read_on_request(target: str) -> None:
    """W + s·B·A, and only where a pattern names it."""
    model = adapted([target])
    layer = model.get_submodule(f"base_model.model.{target}")
    (merged,) = discover(model, selection=Selection(["*/merged"])).matrices
    expected = layer.base_layer.weight + layer.get_delta_weight("default")
    spectrum = read_spectrum(merged, precision="exact")
    assert (merged.name, spectrum.view) == (f"{target}/merged", "merged")
    assert np.allclose(spectrum.eigenvalues, by_hand(expected), rtol=1e-9)


def test_the_sum_trains_as_its_adapter_does() -> None:
    """Its base is frozen: the sum is read at each due step, is held by the optimizer, and covers the factors too."""
    model = adapted(["up"])
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.1)
    with esdmon.watch(model, optimizer, every=1, layers=["up*", "*/merged"], sinks=None) as monitor:
        for _ in range(2):
            model.get_submodule("base_model.model.up")(torch.ones(1, 40)).sum().backward()
            optimizer.step()
    assert monitor.report is not None
    base, merged = monitor.report["up"], monitor.report["up/merged"]
    assert (base.step, base.trainable, base.in_optimizer) == (1, False, False)
    assert (merged.step, merged.trainable, merged.in_optimizer) == (2, True, True)
    assert esdmon.analyze(model, layers=["*/merged"]).coverage.watched == 70 * 40 + RANK * (70 + 40)


def test_a_delta_is_never_called_collapsed_or_trained() -> None:
    """It has no phase, no null and no alpha that means anything; the report says that its rank is why."""
    layer = esdmon.analyze(adapted(["up"]))["up/lora.default"]
    assert (layer.status, layer.view, layer.N, layer.M) == ("ok", "lora-delta", 70, RANK)
    assert layer.phase is Phase.UNCLASSIFIED
    assert f"An adapter of rank {RANK}" in layer.explanation
    assert not layer.nulls
    assert not layer.alpha_is_meaningful


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("rank", [1, 2, 8, 16])
def test_how_an_adapter_uses_its_rank_and_how_strong_it_is(rank: int) -> None:
    """‖ΔW‖_F²/‖ΔW‖₂²/r, and ‖ΔW‖₂/‖W‖₂, by SVDs in float64, of adapters of any rank, wide and tall."""
    model = adapted(["up", "down", "conv", "table"], rank=rank)
    report = esdmon.analyze(model, layers=["*"])
    for name in ("up", "down", "conv", "table"):
        layer = model.get_submodule(f"base_model.model.{name}")
        delta = layer.get_delta_weight("default").flatten(1).detach().double()
        sigma = torch.linalg.svdvals(delta)[:rank]
        measures = report[f"{name}/lora.default"].measures
        assert measures["rank_use"] == pytest.approx(float((sigma**2).sum() / sigma[0] ** 2 / rank), rel=1e-4)
        assert 1 / rank * 0.9999 <= measures["rank_use"] <= 1
        base = torch.linalg.svdvals(layer.base_layer.weight.detach().flatten(1).double())
        expected = math.nan if name == "conv" else float(sigma[0] / base[0])  # kernel positions are read one by one
        assert measures["base_ratio"] == pytest.approx(expected, rel=1e-4, nan_ok=True)
    assert "rank_use" not in report["up"].measures
    assert "base_ratio" not in report["plain"].measures


def test_an_adapter_whose_base_is_not_read_has_no_ratio() -> None:
    model = adapted(["up"])
    (delta,) = esdmon.analyze(model, layers=["*/lora.*"])
    assert delta.measures["rank_use"] > 0
    assert math.isnan(delta.measures["base_ratio"])


def test_an_adapter_that_adds_nothing_yet_is_inactive() -> None:
    """B = 0 at the start is not a dead layer."""
    layer = esdmon.analyze(adapted(["up"], init_lora_weights=True))["up/lora.default"]
    assert (layer.status, layer.reason) == (
        "skipped",
        "inactive: this adapter adds nothing yet (one of its factors is zero)",
    )


def test_a_merged_base_is_not_read_as_the_base() -> None:
    """After merge_adapter() the base holds the sum; taken apart again it reads as before."""
    model = adapted(["up"])
    before = esdmon.analyze(model)["up"]
    model.merge_adapter()
    assert esdmon.analyze(model)["up"].reason.startswith("an adapter is merged into this weight")
    model.unmerge_adapter()
    after = esdmon.analyze(model)["up"]
    assert after.measures["spectral_norm"] == pytest.approx(before.measures["spectral_norm"], rel=1e-5)


def test_several_adapters_and_dora() -> None:
    """Each adapter by its name; the sum of DoRA, which is not a plain sum, is skipped with a reason."""
    model = adapted(["up"], use_dora=True)
    model.add_adapter("other", peft.LoraConfig(r=RANK, target_modules=["up"], init_lora_weights=False))
    names = [matrix.name for matrix in discover(model).matrices]
    assert names == ["up", "up/lora.default", "up/lora.other", "down", "conv", "plain"]
    (merged,) = esdmon.analyze(model, layers=["*/merged"])
    assert (merged.status, merged.reason) == (
        "skipped",
        "the merged weight of a DoRA adapter is not read: it is not a plain sum",
    )


def test_coverage_counts_the_factors() -> None:
    """The adapter's own parameters are watched, and nothing twice."""
    model = adapted(["up"])
    coverage = discover(model).coverage
    assert coverage.total == sum(parameter.numel() for parameter in model.parameters())
    assert not [skip for skip in coverage.skipped if "lora" in skip.name]


def test_an_adapters_file_is_read_as_deltas() -> None:
    """Factors that a mapping holds side by side are one matrix of rank r, not two that never act alone."""
    model = adapted(["up"])
    state = peft.get_peft_model_state_dict(model)
    (delta,) = discover(state).matrices
    assert (delta.name, delta.view) == ("up/lora.default", "lora-delta")
    expected = model.get_submodule("base_model.model.up").get_delta_weight("default") / SCALING
    assert np.allclose(read_spectrum(delta, precision="exact").eigenvalues, by_hand(expected)[-RANK:], rtol=1e-5)


def test_training_with_adapters_is_watched() -> None:
    """The base is frozen and read once; the delta moves from inactive to a reading."""
    model = adapted(["up"], init_lora_weights=True)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    with esdmon.watch(model, optimizer, every=1, budget=None, sinks=None, strict=True) as monitor:
        for _ in range(3):
            model.base_model.model.up(torch.randn(8, 40)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert monitor.report is not None
    assert monitor.report["up"].age == 2
    delta = monitor.report["up/lora.default"]
    assert delta.status == "ok"
    base = monitor.report["up"].measures["spectral_norm"]
    assert delta.measures["base_ratio"] == pytest.approx(delta.measures["spectral_norm"] / base)
    assert monitor.alerts == ()


class LanguageModel(nn.Module):
    """An embedding of tokens, a layer and an output head."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.up, self.lm_head = nn.Embedding(90, 40), nn.Linear(40, 40), nn.Linear(40, 90, bias=False)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head


def test_an_adapter_of_the_output_head_is_read() -> None:
    """It is trained for a task; the head below it is read on request, as without an adapter."""
    torch.manual_seed(0)
    config = peft.LoraConfig(r=RANK, target_modules=["up", "lm_head"], init_lora_weights=False)
    report = esdmon.analyze(peft.get_peft_model(LanguageModel(), config))
    assert [layer.name for layer in report] == ["up", "up/lora.default", "lm_head/lora.default"]


def test_a_trained_copy_has_the_name_of_its_layer(tmp_path: Path) -> None:
    """As in the file of the adapter, and in a checkpoint of the model, which is its reference."""
    torch.manual_seed(0)
    base = LanguageModel()
    torch.save(base.state_dict(), tmp_path / "base.pt")
    config = peft.LoraConfig(r=RANK, target_modules=["lm_head"], modules_to_save=["up"], init_lora_weights=False)
    model = peft.get_peft_model(base, config)
    copy = model.get_parameter("base_model.model.up.modules_to_save.default.weight")
    before = copy.detach().clone()
    copy.data += 0.1 * torch.randn_like(copy)
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    report, saved = esdmon.analyze(model), esdmon.analyze(tmp_path / "adapter")
    assert [layer.name for layer in report] == ["up.original_module", "up", "lm_head/lora.default"]
    assert {layer.name for layer in saved} == {"up", "lm_head/lora.default"}
    for name in ("up", "lm_head/lora.default"):
        assert saved[name].measures == pytest.approx(report[name].measures, nan_ok=True)
    changed = esdmon.analyze(model, reference=tmp_path / "base.pt")
    assert changed["up"].view == "difference"
    assert changed["up"].measures["frobenius_norm"] == pytest.approx(float((copy.detach() - before).norm()))
