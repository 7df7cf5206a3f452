"""Where sinks say that one can look: commands that work as typed."""

import os
import shlex
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

import esdmon
from esdmon.errors import InputError
from esdmon.notice import nearby
from esdmon.sinks import JsonlSink
from esdmon_tensorboard.sink import TensorBoardSink


def test_paths_are_as_the_user_would_type_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative in the working directory, quoted, and still known after closing."""
    monkeypatch.chdir(tmp_path)
    sink = JsonlSink("my runs/esdmon.jsonl")
    sink.close()
    command = shlex.split(sink.where().strip("`"))
    assert command == ["esdmon", "report", "my runs/esdmon.jsonl"]
    assert Path(command[-1]).exists()
    assert nearby(Path("/elsewhere/a")) == "/elsewhere/a"


def test_the_folder_of_tensorboard_is_that_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where another run has the folder, and for a writer of the user's."""
    monkeypatch.chdir(tmp_path)
    report = esdmon.analyze({"fc": torch.eye(64)})
    for folder in ("a", "a/run-2"):
        sink = TensorBoardSink.open("a")
        sink.start(f"{len(folder):08d}")
        sink.write(report)
        sink.close()
        assert sink.where() == f"`tensorboard --logdir {folder}`"
    writer = SummaryWriter("b")
    own = TensorBoardSink(writer)
    own.close()
    writer.close()
    assert own.where() == "`tensorboard --logdir b`"


@pytest.mark.parametrize("scheme", ["jsonl", "csv", "prometheus", "tensorboard"])
@pytest.mark.parametrize("place", ["s3://bucket/a", "gs://bucket/a", "memory:/a", "file:///tmp/a"])
def test_an_address_is_no_local_folder(
    scheme: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readings in a folder called `s3:` on a machine that is deleted after the run would be lost without a word."""
    monkeypatch.chdir(tmp_path)
    target = f"{scheme}:{place}.prom"
    with pytest.raises(InputError, match=f"^{target} is an address, and only local files are written"):
        esdmon.watch(nn.Linear(64, 64), sinks=target)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scheme", ["jsonl", "csv", "prometheus", "tensorboard"])
def test_a_path_that_no_file_can_have(scheme: str) -> None:
    """The operating system's own error for it is a bare ValueError."""
    with pytest.raises(InputError, match="contains a null character"):
        esdmon.watch(nn.Linear(64, 64), sinks=f"{scheme}:runs/a\0b.prom")


def test_the_address_of_a_writer_of_the_users() -> None:
    """Without a change: TensorBoard can read it."""
    writer = SummaryWriter("memory://runs/a")
    sink = TensorBoardSink(writer)
    assert sink.where() == "`tensorboard --logdir memory://runs/a`"
    sink.close()
    writer.close()


def test_a_deleted_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    gone = tmp_path / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    assert nearby(tmp_path) == str(tmp_path)
