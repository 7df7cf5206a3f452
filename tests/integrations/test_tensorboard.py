"""The TensorBoard sink: numbers and texts, in files of its own and through users' writers."""

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import tensorboardX
from torch.utils.tensorboard import SummaryWriter

from esdmon.present.scalars import CHIEF
from esdmon.records import Alert
from esdmon.spectrum.measures import BUILT_IN_MEASURES
from esdmon_tensorboard import TensorBoardSink
from tests.event_files import events_of
from tests.integrations.tensorboard_files import TAG, report_of, steps_of_python, watch_for


@pytest.mark.parametrize("max_tags", [200, None])
def test_measures_of_every_layer_are_scalars_at_every_reading(tmp_path: Path, max_tags: int | None) -> None:
    """TensorBoard's own reader finds the values that were reported: of the chief measures, or of all on request."""
    monitor = watch_for(30, [f"tensorboard:{tmp_path}"], max_tags=max_tags)
    events = events_of(tmp_path)
    tags = set(events.Tags()["scalars"])
    names = CHIEF if max_tags else [measure.name for measure in BUILT_IN_MEASURES if not measure.needs]
    applied = {measure.name for measure in BUILT_IN_MEASURES if measure.applies is None}
    names = ["update_ratio", *(name for name in names if name in applied), "phase"]
    drawn = ["alpha_noise" if name == "alpha" else name for name in names]  # these layers are noise
    expected = {f"esdmon_{name}/{layer}" for name in drawn for layer in ("fc1", "fc2")}
    assert {tag for tag in tags if not tag.startswith("esdmon_summary/")} == expected
    assert "esdmon_summary/stable_rank_median" in tags
    points = events.Scalars("esdmon_stable_rank/fc1")
    assert [point.step for point in points] == [10, 20, 30]
    assert monitor.report is not None
    assert points[-1].value == pytest.approx(monitor.report["fc1"].measures["stable_rank"])
    assert [point.value for point in events.Scalars("esdmon_phase/fc1")] == [0, 0, 0]
    assert {point.value for point in events.Scalars("esdmon_phase/fc2")} == {-1}


def test_alerts_are_text(tmp_path: Path) -> None:
    """The tag has the rule and the layer, the text the message."""
    sink = TensorBoardSink.open(str(tmp_path))
    sink.alert(Alert("r:fc1", "r", "warning", "firing", "fc1", ("fc1",), 20, 10, "what to do"))
    sink.close()
    (tensor,) = events_of(tmp_path).Tensors("esdmon_alert/r/fc1/text_summary")
    assert tensor.step == 20
    assert tensor.tensor_proto.string_val[0].decode() == "**warning, firing** what to do"


def test_the_users_own_writer_stays_open(tmp_path: Path) -> None:
    """Its owner can write to it afterwards."""
    writer = SummaryWriter(str(tmp_path))
    watch_for(10, [TensorBoardSink(writer)])
    writer.add_scalar("loss", 1.0, 11)
    writer.close()
    assert {"loss", "esdmon_stable_rank/fc1"} <= set(events_of(tmp_path).Tags()["scalars"])


def test_two_models_of_one_writer_are_two_runs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Their layers may have the same names. A resumed one finds its run again, and a closed one leaves the writer."""
    writer = SummaryWriter(str(tmp_path))
    first, second = (TensorBoardSink(writer) for _ in range(2))
    for run, sink in (("a1", first), ("b2", second)):
        sink.start(run)
        sink.write(report_of("ab", 10))
    second.close()
    resumed = TensorBoardSink(writer)
    resumed.start("b2")
    resumed.rewind(10)
    resumed.write(report_of("ab", 20))
    first.write(report_of("ab", 15))
    for sink in (first, resumed):
        sink.close()
    third = TensorBoardSink(writer)
    third.write(report_of("ab", 30))
    third.close()
    writer.close()
    assert [steps_of_python(folder, TAG) for folder in (tmp_path, tmp_path / "esdmon-2")] == [[10, 15, 30], [10, 20]]
    assert "this one writes to a run of its own, in " in caplog.text


@pytest.mark.parametrize("close_early", [False, True], ids=["open", "closed"])
@pytest.mark.parametrize("kind", [tensorboardX.SummaryWriter, SummaryWriter], ids=["tensorboardX", "torch"])
def test_a_writer_of_any_kind_has_all(tmp_path: Path, kind: Any, close_early: bool) -> None:  # noqa: FBT001
    """Numbers, texts, histograms and pictures, also if the user has closed it, which opens another file."""
    writer = kind(str(tmp_path))
    if close_early:
        writer.close()
    sink = TensorBoardSink(writer)
    sink.write(report_of("ab", 10))
    sink.alert(Alert("r:a", "r", "warning", "firing", "a", ("a",), 10, 10, "what to do"))
    sink.rewind(0)  # what is the user's is not cut
    sink.write(report_of("ab", 20))
    sink.close()
    writer.close()
    tags = events_of(tmp_path).Tags()
    assert {"esdmon_stable_rank/a", "esdmon_phase/b"} <= set(tags["scalars"])
    assert set(tags["histograms"]) == {"esdmon_esd/a", "esdmon_esd/b"}
    assert set(tags["images"]) == {"esdmon/overview", "esdmon_picture/a", "esdmon_picture/b"}
    texts = {"esdmon/alerts/text_summary", "esdmon_alert/r/a/text_summary", "esdmon_report/text_summary"}
    assert texts <= set(tags["tensors"])
    assert {point.step for point in events_of(tmp_path).Scalars("esdmon_stable_rank/a")} == {10, 20}


def test_a_writer_that_takes_numbers_only_has_the_numbers() -> None:
    """Methods that a writer lacks are not called."""

    class Numbers:
        def __init__(self) -> None:
            self.tags: list[str] = []

        def add_scalar(self, tag: str, value: float, step: int) -> None:
            self.tags.append(tag)

    writer = Numbers()
    sink = TensorBoardSink(writer)  # type: ignore[arg-type]
    sink.write(report_of("a", 10))
    sink.flush()
    sink.close()
    assert "esdmon_stable_rank/a" in writer.tags


def test_a_writer_of_the_users_in_the_same_folder_loses_nothing(tmp_path: Path) -> None:
    """Two files of one folder that grow at once are not both read by TensorBoard."""
    sink = TensorBoardSink.open(str(tmp_path))
    with closing(SummaryWriter(str(tmp_path))) as writer:
        for step in (10, 20):
            sink.write(report_of("a", step))
            writer.add_scalar("loss", 1.0, step)
    sink.close()
    assert steps_of_python(tmp_path, "loss") == [10, 20]
    assert steps_of_python(tmp_path / "run-2", TAG) == [10, 20]
