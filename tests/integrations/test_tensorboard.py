import shutil
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.tensorboard import SummaryWriter

import esdmon
from esdmon.errors import InputError
from esdmon.records import Alert
from esdmon.spectrum.measures import BUILT_IN
from esdmon_tensorboard import TensorBoardSink


def events_of(folder: Path) -> EventAccumulator:
    """What TensorBoard itself reads from a folder."""
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    accumulator.Reload()
    return accumulator


def watch_for(steps: int, sinks: list[str | TensorBoardSink]) -> esdmon.Monitor:
    torch.manual_seed(0)
    model = nn.ModuleDict({"fc1": nn.Linear(128, 96), "fc2": nn.Linear(96, 20)})
    with esdmon.watch(model, every=10, budget=None, sinks=sinks) as monitor:
        for _ in range(steps):
            monitor.step()
    return monitor


def test_every_measure_of_every_layer_is_a_scalar_at_every_reading(tmp_path: Path) -> None:
    """Read back by TensorBoard's own reader, equal to what was reported."""
    monitor = watch_for(30, [f"tensorboard:{tmp_path}"])
    events = events_of(tmp_path)
    tags = set(events.Tags()["scalars"])
    expected = {
        f"esdmon_{measure.name}/{layer}" for measure in BUILT_IN for layer in ("fc1", "fc2") if not measure.needs
    }
    assert expected | {"esdmon_phase/fc1", "esdmon_phase/fc2", "esdmon_summary/stable_rank_median"} <= tags
    points = events.Scalars("esdmon_stable_rank/fc1")
    assert [point.step for point in points] == [10, 20, 30]
    assert monitor.report is not None
    assert points[-1].value == pytest.approx(monitor.report["fc1"].measures["stable_rank"])
    assert [point.value for point in events.Scalars("esdmon_phase/fc1")] == [0, 0, 0]
    assert {point.value for point in events.Scalars("esdmon_phase/fc2")} == {-1}


def test_alerts_are_text(tmp_path: Path) -> None:
    """Under the rule and the layer, with the message."""
    sink = TensorBoardSink.open(str(tmp_path))
    sink.alert(Alert("r:fc1", "r", "warning", "firing", "fc1", ("fc1",), 20, 10, "what to do"))
    sink.close()
    (tensor,) = events_of(tmp_path).Tensors("esdmon_alert/r/fc1/text_summary")
    assert tensor.step == 20
    assert tensor.tensor_proto.string_val[0].decode() == "**warning, firing** what to do"


def test_the_users_own_writer_stays_open(tmp_path: Path) -> None:
    """It was not ours to close."""
    writer = SummaryWriter(str(tmp_path))
    watch_for(10, [TensorBoardSink(writer)])
    writer.add_scalar("loss", 1.0, 11)
    writer.close()
    assert {"loss", "esdmon_alpha/fc1"} <= set(events_of(tmp_path).Tags()["scalars"])


@pytest.mark.parametrize(
    ("target", "message"), [("", "tensorboard needs a folder"), ("{file}/below", "cannot be written")]
)
def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, target: str, message: str) -> None:
    """At construction, in one sentence."""
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(InputError, match=message):
        TensorBoardSink.open(target.format(file=file))


def test_a_folder_that_is_deleted_is_begun_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What it held is lost, which is told; what comes after is there."""
    folder = tmp_path / "run"
    model = nn.Linear(64, 64)
    with esdmon.watch(model, every=1, budget=None, sinks=f"tensorboard:{folder}") as monitor:
        for step in range(1, 7):
            if step == 4:
                shutil.rmtree(folder)
            monitor.step()
            with torch.no_grad():
                model.weight.mul_(1.1)
    assert monitor.errors == ()
    assert [point.step for point in events_of(folder).Scalars("esdmon_alpha/Linear")] == [4, 5, 6]
    assert caplog.text.count("was deleted: what it held is lost, and it is begun anew") == 1


def test_spectra_are_shown(tmp_path: Path) -> None:
    """A layout, a histogram of all eigenvalues, pictures at the end, and the last table."""
    folder = tmp_path / "run"
    watch_for(30, [f"tensorboard:{folder}"])
    tags = events_of(folder).Tags()
    assert {"esdmon_esd/fc1", "esdmon_esd/fc2"} == set(tags["histograms"])
    histogram = events_of(folder).Histograms("esdmon_esd/fc1")[0].histogram_value
    assert histogram.num == sum(histogram.bucket) == 96
    assert {"esdmon_picture/fc1", "esdmon_picture/fc2"} == set(tags["images"])
    image = events_of(folder).Images("esdmon_picture/fc1")[-1]
    assert (image.step, image.width, image.height) == (30, 640, 400)
    assert {"custom_scalars__config__", "esdmon_report/text_summary"} <= set(tags["tensors"])


def test_a_phase_that_changes_is_drawn(tmp_path: Path) -> None:
    """At that reading, and not at the others."""
    torch.manual_seed(0)
    model = nn.Linear(128, 128)
    sink = TensorBoardSink.open(str(tmp_path / "run"))
    with esdmon.watch(model, every=1, budget=None, sinks=[sink], alerts=None) as monitor:
        for step in range(1, 6):
            if step == 3:
                with torch.no_grad():
                    model.weight.add_(torch.outer(torch.ones(128), torch.ones(128)) * 0.05)
            monitor.step()
    steps = [image.step for image in events_of(tmp_path / "run").Images("esdmon_picture/Linear")]
    assert steps == [3, 5]
