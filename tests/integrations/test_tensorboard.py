import itertools
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tensorboardX
import torch
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.tensorboard import SummaryWriter

import esdmon
from esdmon.errors import InputError
from esdmon.present.media import MOST
from esdmon.records import Alert, Coverage, LayerReport, Report
from esdmon.spectrum import Phase
from esdmon.spectrum.measures import BUILT_IN_MEASURES
from esdmon.testing import reports
from esdmon_tensorboard import TensorBoardSink
from esdmon_tensorboard.events import RunFiles


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
        f"esdmon_{measure.name}/{layer}"
        for measure in BUILT_IN_MEASURES
        for layer in ("fc1", "fc2")
        if not measure.needs
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
    assert caplog.text.count("was deleted: what it held is lost. Writing goes on in a new file") == 1


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


@cache
def a_layer() -> LayerReport:
    """With a spectrum."""
    return reports()[0].layers[0]


def report_of(names: str, step: int, phase: Phase = Phase.RANDOM_LIKE, host_step: int | None = None) -> Report:
    """Of a layer for each letter, all of them read at that step."""
    layers = tuple(replace(a_layer(), name=name, step=step, phase=phase, host_step=host_step) for name in names)
    return Report(step, layers, Coverage(0, 0), host_step=host_step)


def pictures(folder: Path) -> dict[str, list[int]]:
    """The steps of the pictures of each layer."""
    events = events_of(folder)
    return {tag.rpartition("/")[2]: [image.step for image in events.Images(tag)] for tag in events.Tags()["images"]}


def test_a_phase_that_changes_is_drawn_between_reports(tmp_path: Path) -> None:
    """A picture at a step, and none in the step of a report; at the end each layer as it is then."""
    sink = TensorBoardSink.open(str(tmp_path))
    sink.write(report_of("abc", 10))
    assert sink.catch_up() is False
    sink.write(report_of("abc", 20, Phase.BULK_SPIKES))
    assert pictures(tmp_path) == {}
    assert [sink.catch_up() for _ in range(2)] == [True, True]
    assert pictures(tmp_path) == {"a": [20], "b": [20]}
    sink.write(report_of("abc", 30, Phase.BULK_SPIKES))
    sink.close()
    assert pictures(tmp_path) == {"a": [20, 30], "b": [20, 30], "c": [30]}


def test_a_layer_with_an_alert_is_drawn_first(tmp_path: Path) -> None:
    """Where it is drawn in the host's steps."""
    sink = TensorBoardSink.open(str(tmp_path))
    sink.write(report_of("abcd", 10, host_step=5))
    sink.write(report_of("abcd", 20, Phase.BULK_SPIKES, host_step=10))
    sink.alert(Alert("r:d", "r", "warning", "firing", "d", ("d", "b", "gone"), 20, 10, "what to do"))
    for _ in range(2):
        sink.catch_up()
    assert pictures(tmp_path) == {"d": [10], "b": [10]}
    sink.close()


def test_a_watched_run_draws_while_it_trains(tmp_path: Path) -> None:
    """The step after the phase has changed, and the last."""
    torch.manual_seed(0)
    model = nn.Linear(128, 128)
    with esdmon.watch(
        model, every=2, budget=None, sinks=f"tensorboard:{tmp_path}", alerts=None, mode="sync"
    ) as monitor:
        for step in range(1, 9):
            if step == 3:
                with torch.no_grad():
                    model.weight.add_(torch.outer(torch.ones(128), torch.ones(128)) * 0.05)
            monitor.step()
            if step == 5:
                assert pictures(tmp_path) == {"Linear": [4]}
    assert pictures(tmp_path) == {"Linear": [4, 8]}


def test_closing_takes_only_so_long(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Here a picture takes a second, and two seconds are too many; what has changed is drawn first."""
    caplog.set_level("INFO")
    sink = TensorBoardSink(RunFiles(str(tmp_path)), clock=itertools.count().__next__)
    sink.write(report_of("abcdef", 10))
    sink.write(
        replace(
            report_of("ef", 20, Phase.BULK_SPIKES),
            layers=(*report_of("abcd", 10), *report_of("ef", 20, Phase.BULK_SPIKES)),
        )
    )
    sink.close()
    assert pictures(tmp_path) == {"e": [20]}
    assert "TensorBoard has no last picture of 5 of 6 layers" in caplog.text


def test_what_cannot_be_drawn_does_not_keep_the_files_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong with a layer's numbers."""

    def broken(layer: LayerReport) -> None:
        raise FloatingPointError(layer.name)

    monkeypatch.setattr("esdmon_tensorboard.sink.draw_esd", broken)
    sink = TensorBoardSink.open(str(tmp_path))
    sink.write(report_of("a", 10))
    with pytest.raises(FloatingPointError, match="a"):
        sink.close()
    assert "esdmon_alpha/a" in events_of(tmp_path).Tags()["scalars"]


def test_few_measures_are_enough_for_a_picture(tmp_path: Path) -> None:
    """Those that are drawn may not have been taken."""
    model = nn.Linear(256, 128)
    sinks = f"tensorboard:{tmp_path}"
    with esdmon.watch(model, every=1, budget=None, measures=["alpha", "xmin"], sinks=sinks) as monitor:
        monitor.step()
    assert monitor.errors == ()
    assert pictures(tmp_path) == {"Linear": [1]}


def test_a_report_of_many_layers_has_few_histograms(tmp_path: Path) -> None:
    """The others follow at the next readings; none is left out."""
    sink = TensorBoardSink.open(str(tmp_path))
    names = "".join(chr(ord("a") + k) for k in range(26)) + "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    for step in (10, 20, 30):
        sink.write(report_of(names, step))
        assert len(events_of(tmp_path).Tags()["histograms"]) == min(step // 10 * MOST, len(names))
    sink.close()


def steps_of_python(folder: Path, tag: str) -> list[int]:
    """What TensorBoard shows with --load_fast=false."""
    events = plugin_event_accumulator.EventAccumulator(str(folder), tensor_size_guidance={"scalars": 0})
    events.Reload()
    return [point.step for point in events.Tensors(tag)]


def steps_of_rust(folder: Path, tag: str, last: int) -> list[int]:
    """What TensorBoard shows by default, asked of its data server, once that has read as far as a step."""
    import grpc
    from tensorboard.context import RequestContext
    from tensorboard.data import grpc_provider, server_ingester

    try:
        binary = server_ingester.get_server_binary().path
    except server_ingester.NoDataServerError:
        pytest.skip("TensorBoard's data server is not made for this system")
    port = folder.parent / f"{folder.name}.port"
    flags = ["--reload=once", "--samples-per-plugin=scalars=all", "--port=0", "--die-after-stdin"]
    command = [binary, f"--logdir={folder}", f"--port-file={port}", *flags]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        until(lambda: port.exists() and port.read_text().endswith("\n"))
        address = f"localhost:{int(port.read_text())}"
        with grpc.insecure_channel(address) as channel:
            provider = grpc_provider.GrpcDataProvider(address, grpc_provider.make_stub(channel))

            def steps() -> list[int]:
                options = {"experiment_id": "", "plugin_name": "scalars", "downsample": 1000}
                runs = provider.read_scalars(RequestContext(), **options)
                return [point.step for point in runs.get(".", {}).get(tag, [])]

            until(lambda: steps()[-1:] == [last])
            found = steps()
        assert server.stdin is not None
        server.stdin.close()
    port.unlink()
    return found


def until(is_so: Callable[[], object]) -> None:
    for _ in range(1000):
        if is_so():
            return
        time.sleep(0.01)
    pytest.fail("TensorBoard's data server did not answer")


TAG = "esdmon_alpha/a"


def write_run(folder: Path, steps: Iterable[int], *, run: str = "aa", rewound: int | None = None) -> TensorBoardSink:
    """One process of a run, as a monitor writes it."""
    sink = TensorBoardSink.open(str(folder))
    sink.start("ffffffff")
    if rewound is not None:
        sink.start(run)
        sink.rewind(rewound)
    else:
        sink.start(run)
    for step in steps:
        sink.write(report_of("a", step))
    sink.close()
    return sink


@pytest.mark.parametrize("resumes", [1, 2])
@pytest.mark.parametrize("is_subfolder", [False, True], ids=["folder", "subfolder"])
def test_a_resumed_run_shows_no_point_twice(tmp_path: Path, resumes: int, is_subfolder: bool) -> None:  # noqa: FBT001
    """In both of TensorBoard's readers, and in that of scripts; also where the run has a sub-folder."""
    folder = tmp_path
    if is_subfolder:
        write_run(tmp_path, [10, 20], run="bb")
        folder = tmp_path / "run-2"
    write_run(tmp_path, range(10, 210, 10))
    write_run(tmp_path, range(110, 180, 10), rewound=100)
    if resumes == 2:
        write_run(tmp_path, range(130, 180, 10), rewound=120)
    expected = list(range(10, 180, 10))
    assert steps_of_python(folder, TAG) == expected
    assert steps_of_rust(folder, TAG, 170) == expected
    assert [point.step for point in events_of(folder).Scalars(TAG)] == expected
    assert len(list(folder.glob("*tfevents*"))) == 1 + resumes


def test_a_resumed_run_is_cut_where_the_host_draws(tmp_path: Path) -> None:
    """A host whose axis counts every other step of ours."""
    for first, rewound in ((2, None), (22, 20)):
        sink = TensorBoardSink.open(str(tmp_path))
        sink.start("aa")
        if rewound is not None:
            sink.rewind(rewound)
        for step in range(first, 32, 2):
            sink.write(report_of("a", step, host_step=step // 2))
        sink.close()
    assert steps_of_python(tmp_path, TAG) == list(range(1, 16))


def test_a_run_that_is_rewound_in_one_process(tmp_path: Path) -> None:
    """Within a second, in which file names would come in the wrong order."""
    sink = TensorBoardSink.open(str(tmp_path))
    sink.write(report_of("a", 10))
    for _ in range(12):
        sink.write(report_of("a", 20))
        sink.rewind(10)
    sink.write(report_of("a", 15))
    sink.close()
    assert steps_of_python(tmp_path, TAG) == [10, 15]


def test_a_second_run_has_a_folder_of_its_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of another id, whoever wrote the first; told in one line."""
    assert caplog.text == ""
    for run in ("aa", "bb", "cc"):
        write_run(tmp_path, [10, 20], run=run)
    for folder in (tmp_path, tmp_path / "run-2", tmp_path / "run-3"):
        assert steps_of_python(folder, TAG) == [10, 20]
    assert [record.message for record in caplog.records] == [
        f"esdmon: {tmp_path} holds event files of another run: this run is written to {tmp_path / f'run-{n}'}."
        for n in (2, 3)
    ]


def test_a_script_that_is_run_twice_has_two_runs(tmp_path: Path) -> None:
    """As a user would write it."""
    for _ in range(2):
        watch_for(10, [f"tensorboard:{tmp_path}"])
    for folder in (tmp_path, tmp_path / "run-2"):
        assert [point.step for point in events_of(folder).Scalars("esdmon_alpha/fc1")] == [10]


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


def test_nothing_is_made_before_there_is_something_to_write(tmp_path: Path) -> None:
    """No thread and no file; of a run without a reading no folder is left."""
    before = threading.active_count()
    sink = TensorBoardSink.open(str(tmp_path / "a" / "b"))
    sink.start("aa")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    sink.close()
    assert list(tmp_path.iterdir()) == []
    sink = TensorBoardSink.open(str(tmp_path / "a"))
    sink.write(report_of("a", 10))
    assert threading.active_count() == before
    sink.close()


def test_the_working_directory_may_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder is that of the directory in which it was given."""
    monkeypatch.chdir(tmp_path)
    sink = TensorBoardSink.open("runs/a")
    sink.write(report_of("a", 10))
    (tmp_path / "job").mkdir()
    monkeypatch.chdir(tmp_path / "job")
    sink.write(report_of("a", 20))
    sink.rewind(20)
    sink.write(report_of("a", 30))
    sink.close()
    assert steps_of_python(tmp_path / "runs/a", TAG) == [10, 20, 30]
    assert list((tmp_path / "job").iterdir()) == []
    assert caplog.text == ""


@pytest.mark.skipif(sys.platform == "win32", reason="files have no limit there")
def test_after_a_disk_was_full_it_is_written_again(tmp_path: Path) -> None:
    """What was written before is read, and what comes after."""
    import resource

    sink = TensorBoardSink.open(str(tmp_path))
    sink.write(report_of("a", 10))
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (size + 50, 50, 0):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(OSError, match="File too large"):
                sink.write(report_of("a", 20))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    for step in (30, 40):
        sink.write(report_of("a", step))
    sink.close()
    assert steps_of_python(tmp_path, TAG) == [10, 30, 40]
    assert steps_of_rust(tmp_path, TAG, 40) == [10, 30, 40]


@pytest.mark.parametrize("close_early", [False, True], ids=["open", "closed"])
@pytest.mark.parametrize("kind", [tensorboardX.SummaryWriter, SummaryWriter], ids=["tensorboardX", "torch"])
def test_a_writer_of_any_kind_has_all(tmp_path: Path, kind: Any, close_early: bool) -> None:  # noqa: FBT001
    """Numbers, texts, histograms and pictures; also where the user has closed it, which opens another file."""
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
    assert {"esdmon_alpha/a", "esdmon_phase/b"} <= set(tags["scalars"])
    assert set(tags["histograms"]) == {"esdmon_esd/a", "esdmon_esd/b"}
    assert set(tags["images"]) == {"esdmon_picture/a", "esdmon_picture/b"}
    assert {"esdmon_alert/r/a/text_summary", "esdmon_report/text_summary"} <= set(tags["tensors"])
    assert {point.step for point in events_of(tmp_path).Scalars("esdmon_alpha/a")} == {10, 20}


def test_a_writer_that_takes_numbers_only_has_the_numbers() -> None:
    """As that of a logger of another kind."""

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
    assert "esdmon_alpha/a" in writer.tags
