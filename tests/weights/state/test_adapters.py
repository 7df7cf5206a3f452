"""Adapters of peft whose scale or place is in their configuration alone: regular expressions, and experts."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import esdmon

EXPERTS = 3


class Experts(nn.Module):
    """Experts whose parameters hold a matrix for each; `is_transposed` says whether inputs come first."""

    def __init__(self, *, is_transposed: bool) -> None:
        super().__init__()
        self.is_transposed, self.num_experts = is_transposed, EXPERTS
        sides = {"gate_up_proj": (80, 24), "down_proj": (24, 40)}
        for name, (outputs, inputs) in sides.items():
            shape = (inputs, outputs) if is_transposed else (outputs, inputs)
            setattr(self, name, nn.Parameter(torch.randn(EXPERTS, *shape)))


class Block(nn.Module):
    def __init__(self, *, is_transposed: bool) -> None:
        super().__init__()
        self.experts, self.q = Experts(is_transposed=is_transposed), nn.Linear(24, 32)


def adapted(*, is_transposed: bool = False, **options: Any) -> Any:
    """Two blocks with adapters of experts and of `q`, after training."""
    torch.manual_seed(0)
    model = nn.ModuleList(Block(is_transposed=is_transposed) for _ in range(2))
    targets = ["experts.gate_up_proj", "experts.down_proj"]
    config = peft.LoraConfig(target_modules=["q"], target_parameters=targets, **({"r": 12, "lora_alpha": 20} | options))
    adapted: Any = peft.get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return adapted


def norms(of: Any) -> dict[str, float]:
    """Frobenius norm by name."""
    report = esdmon.analyze(of, layers=["*/lora*"], measures=["frobenius_norm"])
    return {layer.name: layer.measures["frobenius_norm"] for layer in report}


@pytest.mark.parametrize("first", ["inputs", "outputs"])
def test_adapters_of_experts_are_a_stack_for_each_parameter(first: str, tmp_path: Path) -> None:
    """ΔW of each expert, as peft adds it; in the module as in its folder."""
    model = adapted(is_transposed=first == "inputs")
    expected = {}
    for number, block in enumerate(model.base_model.model):
        outer, inner = block.experts, block.experts.base_layer
        for wrapper in (outer, inner):
            delta = wrapper.get_delta_weight("default").detach()
            assert delta.shape[0] == EXPERTS
            expected[f"{number}.experts.{wrapper.parameter_name}/lora.default"] = float(delta.norm())
        expected[f"{number}.q/lora.default"] = float(block.q.get_delta_weight("default").detach().norm())
    assert norms(model) == pytest.approx(expected, rel=1e-5)
    model.save_pretrained(str(tmp_path))
    assert norms(tmp_path) == pytest.approx(expected, rel=1e-5)
    (layer,) = esdmon.analyze(tmp_path, layers=["1.experts.down_proj/*"])
    assert (layer.slices, layer.N, layer.M) == (EXPERTS, 40, 12)


def test_adapters_of_experts_without_configuration_are_skipped(tmp_path: Path) -> None:
    """One factor holds those of all experts, and their number is not in the file."""
    adapted().save_pretrained(str(tmp_path))
    (tmp_path / "adapter_config.json").unlink()
    report = esdmon.analyze(tmp_path)
    assert {layer.status for layer in report if "experts" in layer.name} == {"skipped"}
    assert "how many is not known" in report["0.experts/lora.default"].reason
    assert report["0.q/lora.default"].status == "ok"


PATTERNS: dict[str, dict[str, Any]] = {
    "a class of characters": {"alpha_pattern": {r".*\.[01]\.q|[1-9]\.q": 90}},
    "alternatives": {"alpha_pattern": {r"^(0|5)\.q$": 90, "q": 7}},
    "one parameter": {
        "rank_pattern": {r"experts\.gate_up_proj": 15},
        "alpha_pattern": {r"\d{1,2}\.experts\.do\w+": 50},
    },
}


@pytest.mark.filterwarnings("ignore:.*did not match any targeted module")  # peft looks for modules only
@pytest.mark.parametrize("kind", PATTERNS)
def test_patterns_are_regular_expressions(kind: str, tmp_path: Path) -> None:
    """As peft matches them."""
    model = adapted(**PATTERNS[kind])
    model.save_pretrained(str(tmp_path))
    assert norms(tmp_path) == pytest.approx(norms(model), rel=1e-5)


@pytest.mark.parametrize("pattern", [r"(\w+\.)*q", "((a*)*)*q", ".*.*.*.*q", "(q", "(?=.*a)q"])
def test_a_pattern_that_is_not_evaluated_leaves_out_what_it_may_apply_to(pattern: str, tmp_path: Path) -> None:
    """The scale is not guessed."""
    adapted().save_pretrained(str(tmp_path))
    settings = tmp_path / "adapter_config.json"
    text = settings.read_text().replace('"alpha_pattern": {}', f'"alpha_pattern": {{"{pattern}": 4}}')
    settings.write_text(text.replace("\\", "\\\\"))
    layer = esdmon.analyze(tmp_path)["0.q/lora.default"]
    assert layer.status == "skipped"
    assert layer.reason.startswith("alpha_pattern of its adapter_config.json has an expression that is not evaluated")


@pytest.mark.parametrize("component", ["", "transformer."])
def test_the_header_of_a_file_of_diffusers_has_the_scale(component: str, tmp_path: Path) -> None:
    """Of a model that it saves, or of a pipeline, with the component before each key; a damaged header has none."""
    a, b = torch.randn(8, 24), torch.randn(40, 8)
    state = {
        f"{component}blocks.0.{q}.lora_{x}.weight": w.clone() for q in ("to_q", "to_k") for x, w in (("A", a), ("B", b))
    }
    settings = {"r": 8, "lora_alpha": 32, "alpha_pattern": {"to_k": 64}}
    header = json.dumps({f"{component}{key}": value for key, value in settings.items()})
    file = tmp_path / "pytorch_lora_weights.safetensors"
    for metadata, scales in ((header, {"to_q": 4, "to_k": 8}), ("{", {"to_q": 1, "to_k": 1})):
        save_file(state, file, metadata={"lora_adapter_metadata": metadata})
        expected = {
            f"{component}blocks.0.{name}/lora.default": pytest.approx(scale * float((b @ a).norm()), rel=1e-5)
            for name, scale in scales.items()
        }
        assert norms(file) == expected
        assert norms(tmp_path) == expected
