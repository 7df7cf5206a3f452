"""Event files: folders, resumed runs, disks that fill up."""

import shutil
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

import esdmon
from esdmon.errors import InputError
from esdmon_tensorboard import TensorBoardSink
from tests.event_files import events_of
from tests.integrations.tensorboard_files import (
    TAG,
    report_of,
    steps_of_python,
    steps_of_rust,
    watch_for,
    write_run,
)


@pytest.mark.parametrize(
    ("target", "message"), [("", "tensorboard needs a folder"), ("{file}/below", "cannot be written")]
)
def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, target: str, message: str) -> None:
    """The error is raised at construction, in one sentence."""
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(InputError, match=message):
        TensorBoardSink.open(target.format(file=file))


def test_a_folder_that_is_deleted_is_created_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A log line says that its content is lost; later values are written."""
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
    assert [point.step for point in events_of(folder).Scalars("esdmon_stable_rank/Linear")] == [4, 5, 6]
    assert caplog.text.count("was deleted, and its content is lost. Writing continues in a new file") == 1


@pytest.mark.parametrize("resumes", [1, 2])
@pytest.mark.parametrize("is_subfolder", [False, True], ids=["folder", "subfolder"])
def test_a_resumed_run_shows_no_point_twice(tmp_path: Path, resumes: int, is_subfolder: bool) -> None:  # noqa: FBT001
    """Both of TensorBoard's readers and that of scripts agree, also if the run has a sub-folder."""
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
    """The axis of this host counts every other step of ours."""
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
    """Names of files within one second must still sort in the order of writing."""
    sink = TensorBoardSink.open(str(tmp_path))
    sink.write(report_of("a", 10))
    for _ in range(12):
        sink.write(report_of("a", 20))
        sink.rewind(10)
    sink.write(report_of("a", 15))
    sink.close()
    assert steps_of_python(tmp_path, TAG) == [10, 15]


def test_a_second_run_has_a_folder_of_its_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A run with another id is written to a sub-folder, which one log line says."""
    assert caplog.text == ""
    for run in ("aa", "bb", "cc"):
        write_run(tmp_path, [10, 20], run=run)
    for folder in (tmp_path, tmp_path / "run-2", tmp_path / "run-3"):
        assert steps_of_python(folder, TAG) == [10, 20]
    assert [record.message for record in caplog.records] == [
        f"esdmon: {tmp_path} has event files of another run. This run is written to {tmp_path / f'run-{n}'}."
        for n in (2, 3)
    ]


def test_a_script_that_is_run_twice_has_two_runs(tmp_path: Path) -> None:
    """The sink is given as a text, as a user would."""
    for _ in range(2):
        watch_for(10, [f"tensorboard:{tmp_path}"])
    for folder in (tmp_path, tmp_path / "run-2"):
        assert [point.step for point in events_of(folder).Scalars("esdmon_stable_rank/fc1")] == [10]


def test_nothing_is_made_before_there_is_something_to_write(tmp_path: Path) -> None:
    """There is no thread and no file before, and no folder after a run without a reading."""
    before = set(threading.enumerate())  # of which one that another test has left may end meanwhile
    sink = TensorBoardSink.open(str(tmp_path / "a" / "b"))
    sink.start("aa")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    sink.close()
    assert list(tmp_path.iterdir()) == []
    sink = TensorBoardSink.open(str(tmp_path / "a"))
    sink.write(report_of("a", 10))
    assert set(threading.enumerate()) <= before
    sink.close()


def test_the_working_directory_may_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A relative folder refers to the directory in which the sink was opened."""
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
    """Values from before and after the fault are read."""
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
