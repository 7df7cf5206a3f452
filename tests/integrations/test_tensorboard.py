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
