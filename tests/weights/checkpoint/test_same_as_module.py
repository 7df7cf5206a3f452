"""A model, the folder that it saves and the file of its state dict give the same names, shapes and numbers.

`python -m tests.benchmarks.same_as_module` does the same for all of `tests/transformers_models.py`.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

import esdmon
from tests.transformers_models import ARCHITECTURES

MEASURES = ("alpha", "hard_rank", "frobenius_norm", "n_spikes")
CHOSEN = (
    *("GPT-2", "Llama", "Mistral", "Mixtral", "GPT-OSS", "Gemma", "Qwen2", "Phi", "Phi-3", "Falcon", "OPT", "MPT"),
    *("GPT-NeoX", "Bloom", "DeepSeek-V3", "Llama 4", "Mamba", "RWKV", "BERT", "RoBERTa", "ModernBERT", "T5", "BART"),
    *(
        "Whisper",
        "Wav2Vec2",
        "CLIP",
        "BLIP",
        "ViT",
        "Swin",
        "ConvNeXt",
        "LeNet5",
        "VGG, narrow",
        "ResNet of bottlenecks",
    ),
    *("ResNeXt", "MobileNet", "LSTM language model, tied", "GRU", "experts apart"),
)
NOT_IN_A_FILE = {
    "GPT-NeoX": "a state dict does not say how many heads alternate in query_key_value",
    "Bloom": "a state dict does not say how many heads alternate in query_key_value",
}
"""Why the file of a state dict is read in another way."""


def written(model: nn.Module, folder: Path) -> Iterator[tuple[str, Path]]:
    """Save a model in each form, and iterate over names and paths of the forms."""
    torch.save(model.state_dict(), folder / "state.pt")
    yield "file", folder / "state.pt"
    if isinstance(model, transformers.PreTrainedModel):
        model.save_pretrained(folder / "saved")
        yield "folder", folder / "saved"


def readings(model: nn.Module | Path) -> dict[str, dict[str, object]]:
    """Status, shape, type, phase and measures by name."""
    report = esdmon.analyze(model, measures=MEASURES)
    return {
        layer.name: {
            "status": layer.status,
            "shape": (layer.N, layer.M, layer.slices),
            "type": layer.kind,
            "phase": layer.phase,
            **{name: value if value == value else None for name, value in layer.measures.items()},  # noqa: PLR0124
        }
        for layer in report
    }


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.enable_progress_bar()


@pytest.mark.parametrize("architecture", CHOSEN)
def test_files_are_read_as_the_module_is(architecture: str, tmp_path: Path) -> None:
    """Embeddings, heads and routers are left out alike."""
    torch.manual_seed(0)
    model = ARCHITECTURES[architecture]()
    expected = readings(model)
    assert any(reading["status"] == "ok" for reading in expected.values())
    for form, path in written(model, tmp_path):
        if form == "file" and architecture in NOT_IN_A_FILE:
            assert readings(path).keys() != expected.keys()  # else take it from the list
        else:
            assert readings(path) == expected, form
