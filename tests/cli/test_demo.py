from pathlib import Path

import pandas as pd
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from esdmon.cli import main
from esdmon.cli.demo import MiniAlexNet, digits


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run a short demo and return its folder."""
    out = tmp_path_factory.mktemp("demo") / "run"
    assert main(["demo", "--epochs", "2", "--batch-size", "64", "--out", str(out)]) == 0
    return out


def test_tensorboard_finds_each_layer_at_ten_steps_or_more(finished: Path) -> None:
    """By its own event reader."""
    events = EventAccumulator(str(finished), size_guidance={"scalars": 0})
    events.Reload()
    for layer in ("conv1", "conv2", "fc1", "fc2", "fc3"):
        assert len(events.Scalars(f"esdmon_stable_rank/{layer}")) >= 10
        assert len(events.Scalars(f"esdmon_phase/{layer}")) >= 10
        assert len(events.Scalars(f"esdmon_mp_soft_rank/{layer}")) >= 10


def test_pandas_reads_the_jsonl(finished: Path) -> None:
    """One line for each layer and reading, and the summaries beside them."""
    lines = pd.read_json(finished / "esdmon.jsonl", lines=True)
    layers = lines[lines["kind"] == "layer"]
    assert set(layers["name"]) == {"conv1", "conv2", "fc1", "fc2", "fc3"}
    assert layers.groupby("name")["step"].nunique().min() >= 10
    assert set(lines["kind"]) == {"layer", "summary"}


def test_a_second_run_takes_a_folder_of_its_own(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two runs in one folder would mix their curves; nothing is deleted."""
    before = (finished / "esdmon.jsonl").read_bytes()
    assert main(["demo", "--epochs", "1", "--batch-size", "512", "--out", str(finished)]) == 0
    second = finished.with_name("run-2")
    output = capsys.readouterr().out
    assert f"tensorboard --logdir {second}" in output.replace("\n", "")
    assert (second / "esdmon.jsonl").exists()
    assert (finished / "esdmon.jsonl").read_bytes() == before


def test_the_network_has_the_papers_fully_connected_layers() -> None:
    """FC2 is the paper's; FC1 keeps its width; both images and labels fit."""
    images, labels = digits()
    model = MiniAlexNet()
    assert model.fc2.weight.shape == (192, 384)
    assert model.fc1.weight.shape == (384, 1024)
    assert images.shape == (1797, 1, 16, 16)
    assert model(images[:2]).shape == (2, 10)
    assert set(labels.tolist()) == set(range(10))
    assert float(images.mean()) == pytest.approx(0, abs=1e-5)
    assert torch.isfinite(images).all()
