"""Notices: printed by default, and logged where INFO is enabled."""

import errno
import io
import logging
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import pytest

from esdmon.notice import notice
from tests.summaries import without_summary

SCRIPT = """
    import torch, esdmon
    model = torch.nn.Linear(64, 64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with esdmon.watch(model, optimizer):
        for _ in range(200):
            model(torch.randn(2, 64)).sum().backward()
            optimizer.step()
"""


def test_with_all_defaults_one_line_says_where_readings_go(tmp_path: Path) -> None:
    """It also says how to open them; nothing else is printed but the summary at the end."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT)], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    (folder,) = (tmp_path / "runs").iterdir()
    assert done.stdout == ""
    assert without_summary(done.stderr) == f"esdmon: readings go to {folder}; `tensorboard --logdir runs` shows them.\n"
    assert done.stderr.splitlines()[-1] == (
        f"esdmon: look: `tensorboard --logdir runs/{folder.name}`; `esdmon report runs/{folder.name}/esdmon.jsonl`"
    )


def test_a_script_that_logs_gets_it_as_a_log_line(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """The level is INFO, and nothing is printed."""
    with caplog.at_level(logging.INFO, logger="esdmon"):
        notice("readings go to runs/a.")
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "esdmon: readings go to runs/a.")
    ]
    assert capsys.readouterr().err == ""


class Broken(io.StringIO):
    """A standard error that cannot be written, as on a full disk."""

    def write(self, _text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


class Ascii(io.TextIOWrapper):
    """A standard error for which the host chose ASCII, strictly."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="ascii", errors="strict")


@pytest.mark.parametrize("make", [Broken, Ascii, io.StringIO], ids=["full", "ascii", "closed"])
def test_a_standard_error_that_cannot_be_written_stops_nothing(
    make: Callable[[], TextIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line is lost."""
    stream = make()
    if type(stream) is io.StringIO:
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    notice("readings go to runs/größe.")


def test_a_standard_error_of_ascii_gets_what_it_can_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line is not lost."""
    stream = Ascii()
    monkeypatch.setattr(sys, "stderr", stream)
    notice("readings go to runs/größe: 2 × 3.")
    stream.flush()
    assert stream.buffer.getvalue() == b"esdmon: readings go to runs/gro?e: 2 x 3.\n"  # type: ignore[attr-defined]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is of Linux")
def test_a_training_whose_standard_error_is_on_a_full_disk_goes_on(tmp_path: Path) -> None:
    """Its status is that of a run without a monitor, and it has its readings."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(SCRIPT)], stderr=full, cwd=tmp_path, check=False)
    assert done.returncode == 0
    assert [path.name for path in (tmp_path / "runs").glob("*/esdmon.jsonl")] == ["esdmon.jsonl"]


def test_it_can_be_silenced(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    """The logger's level ERROR disables it."""
    with caplog.at_level(logging.ERROR, logger="esdmon"):
        notice("readings go to runs/a.")
    assert capsys.readouterr().err == ""
