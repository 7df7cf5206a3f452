"""LLaMA-Adapter as peft makes it: prompts around attention layers, whose weights keep the names of the user's model."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import esdmon


def language_model() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft and transformers to each other
def test_names_are_those_of_the_model_without_prompts(tmp_path: Path) -> None:
    """Names had the prefix `model.`, and attention layers with a prompt `model` in the middle: patterns found none."""
    names = [layer.name for layer in esdmon.analyze(language_model())]
    config = peft.AdaptionPromptConfig(adapter_len=12, adapter_layers=1, task_type="CAUSAL_LM")
    model = peft.get_peft_model(language_model(), config)
    assert [layer.name for layer in esdmon.analyze(model)] == names
    assert {skip.name for skip in esdmon.analyze(model).coverage.skipped} >= {
        "model.embed_tokens.weight",
        "model.layers.1.self_attn.adaption_prompt",
    }
    torch.save(model.state_dict(), tmp_path / "model.pt")
    assert [layer.name for layer in esdmon.analyze(tmp_path / "model.pt")] == names
    torch.save(model, tmp_path / "whole.pt")
    assert [layer.name for layer in esdmon.analyze(tmp_path / "whole.pt")] == names
