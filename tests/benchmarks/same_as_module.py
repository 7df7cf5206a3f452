"""Read small models of many architectures as modules, and from files: of the state dict, the module, and their folder.

    python -m tests.benchmarks.same_as_module

Names, order aside, shapes, types and phases must be equal, and all measures to a relative 1e-5: the weights are the
same, but experts that a file keeps apart lie in memory in another way, and a weight norm is multiplied again.
"""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

import esdmon
from tests.transformers_models import ARCHITECTURES

NOT_IN_A_FILE = {
    "GPT-NeoX": "a state dict does not say how many heads alternate in query_key_value",
    "layers of torch": "its names say nothing of groups, transposed convolutions and embeddings",
    "Bloom": "a state dict does not say how many heads alternate in query_key_value",
}
"""Why the file of a state dict is read in another way, without `config.json`."""


def written(model: nn.Module, folder: Path) -> Iterator[tuple[str, Path]]:
    """Save a model in each form, and iterate over names and paths of the forms."""
    torch.save(model.state_dict(), folder / "state.pt")
    yield "file", folder / "state.pt"
    if not any(map(is_parametrized, model.modules())):  # torch does not pickle it
        torch.save(model, folder / "model.pt")
        yield "pickled", folder / "model.pt"
    if isinstance(model, transformers.PreTrainedModel):
        model.save_pretrained(folder / "saved")
        yield "folder", folder / "saved"


def readings(model: nn.Module | Path, measures: str | Sequence[str]) -> dict[str, dict[str, object]]:
    """Status, shape, type, phase and measures by name; None for a measure that is undefined."""
    report = esdmon.analyze(model, measures=measures)
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


def close_to(reading: dict[str, object]) -> Any:
    """Return what is equal to a reading with the same numbers, up to rounding."""
    return {
        key: pytest.approx(value, rel=1e-5) if isinstance(value, float) else value for key, value in reading.items()
    }


def main() -> int:
    """Print a line for each architecture; return 1 where one differs."""
    transformers.logging.disable_progress_bar()
    different = 0
    for name, build in ARCHITECTURES.items():
        torch.manual_seed(0)
        model = build()
        if next(model.parameters()).is_meta:
            continue  # too large for a file
        expected = readings(model, "default")
        with tempfile.TemporaryDirectory() as folder:
            forms = {form: readings(path, "default") for form, path in written(model, Path(folder))}
        for form, found in forms.items():
            wrong = [key for key in {*found, *expected} if found.get(key) != close_to(expected.get(key, {}))]
            is_known = form == "file" and name in NOT_IN_A_FILE
            different += bool(wrong) and not is_known
            print(f"{name} ({form}): {len(expected)} matrices, {len(wrong)} differ{' as listed' if is_known else ''}")
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
