"""`esdmon demo`: a training that goes wrong and recovers. The whole story takes long, so the run here is shorter."""

import io
import re
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pandas as pd
import pytest
import torch

from esdmon.cli import demo, main
from esdmon.cli.digits import MiniAlexNet, digits
from tests.event_files import events_of

SHORT = ["--epochs", "12"]  # 600 steps


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Run a short demo and return its folder and what it has printed."""
    out = tmp_path_factory.mktemp("demo") / "run"
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed), redirect_stderr(printed):
        patch.setattr(demo, "READINGS", 40)
        assert main(["demo", *SHORT, "--out", str(out)]) == 0
    return out, printed.getvalue()


def test_loss_and_spectra_are_in_one_tensorboard(finished: tuple[Path, str]) -> None:
    """By its own event reader: in two runs of one folder, over the same steps."""
    tags: dict[str, set[int]] = {}
    for run in ("spectra", "training"):
        events = events_of(finished[0] / run)
        tags |= {tag: {event.step for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}
    assert len(tags["training/loss"]) == 40
    for tag in ("training/accuracy_held_back", "training/weight_decay"):
        assert tags[tag] == tags["training/loss"]
    for layer in ("fc1", "fc2", "fc3"):
        assert tags[f"esdmon_phase/{layer}"] >= tags["training/loss"]


def test_an_alert_on_the_cause_comes_first_and_ends(finished: tuple[Path, str]) -> None:
    """After the fault, and after the remedy; all layers are large enough to have a phase."""
    lines = pd.read_json(finished[0] / "esdmon.jsonl", lines=True)
    alerts = lines[lines["kind"] == "alert"]
    assert alerts["rule"].iloc[0] == "norm_decay"
    assert 225 < alerts["step"].iloc[0] < 300
    assert alerts["state"].iloc[-1] == "resolved"
    assert 450 < alerts["step"].iloc[-1] < 540
    layers = lines[lines["kind"] == "layer"]
    assert set(layers["name"]) == {"fc1", "fc2", "fc3"}
    assert layers["M"].min() >= 64


def test_the_end_says_what_happened_and_where_to_look(finished: tuple[Path, str]) -> None:
    """In order of steps: the fault, the alert, the remedy, its end; then two commands. One summary is enough."""
    out, printed = finished
    story = printed.partition("What happened")[2]
    steps = [int(step) for step in re.findall(r"^ *(\d+)  ", story, re.MULTILINE)]
    assert steps == sorted(steps)
    said = ["random-like, noise", "THE FAULT", "ALERT norm_decay", "THE REMEDY", "resolved: norm_decay", "the end"]
    places = [story.index(part) for part in said]
    assert places == sorted(places)
    assert f"tensorboard --logdir {out}\n" in story
    assert f"esdmon tail {out} --once\n" in story
    assert "esdmon: after" not in printed


def test_a_healthy_run_is_quiet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And a second one takes a folder of its own, since two runs in one would mix their curves."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes").touch()
    assert main(["demo", "--healthy", "--epochs", "1", "--batch-size", "100", "--out", str(tmp_path / "run")]) == 0
    output = capsys.readouterr().out
    assert "no alert has fired" in " ".join(output.split())
    assert "FAULT" not in output
    assert f"tensorboard --logdir {tmp_path / 'run-2'}" in output
    assert (tmp_path / "run-2" / "esdmon.jsonl").exists()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes"]


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
