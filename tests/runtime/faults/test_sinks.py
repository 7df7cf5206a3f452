"""Sinks that fail beside a training: it ends as without a monitor, and the log says what was lost."""

import logging
import re
from pathlib import Path

import pytest

from esdmon.records import Alert, Report
from tests.fakes import RaisingSink
from tests.jsonl import records_in
from tests.runtime.faults.disturbed import STEPS, Run, both_modes, n_logged


@both_modes
def test_a_sink_that_raises(mode: str, undisturbed: list[float], caplog: pytest.LogCaptureFixture) -> None:
    """The others get all; three lines are too many, so two."""
    run = Run(mode=mode, sinks=[RaisingSink(ConnectionError("no route"))])
    run.train()
    run.monitor.close()
    assert run.losses == undisturbed
    assert len(run.steps_read) >= 4
    assert run.who_failed == ["sink RaisingSink"]
    assert n_logged(caplog, "sink RaisingSink failed at step") == 1
    assert n_logged(caplog, "sink RaisingSink has failed 3 times in a row and is paused for 10 due steps") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@both_modes
def test_a_full_disk(mode: str, undisturbed: list[float], caplog: pytest.LogCaptureFixture) -> None:
    """The device on which there is never room."""
    run = Run(mode=mode, sinks=["jsonl:/dev/full"])
    run.train()
    with caplog.at_level(logging.INFO, "esdmon"):
        run.monitor.close()
    assert run.losses == undisturbed
    assert run.who_failed == ["sink jsonl:/dev/full"]
    assert n_logged(caplog, "No space left on device") == 1
    assert re.search(r"jsonl:/dev/full has only 0 of \d+ readings, since it failed: the first that", caplog.text)
    assert "esdmon report /dev/full" not in caplog.text


def test_a_disk_that_is_full_for_a_while(caplog: pytest.LogCaptureFixture) -> None:
    """The end of the run says how many readings are missing in a sink, and since when; the others have all."""

    class Full:
        def write(self, report: Report) -> None:
            if 6 < report.step < 12:
                raise OSError(28, "No space left on device")

        def alert(self, alert: Alert) -> None: ...

        def flush(self) -> None: ...

        def close(self) -> None: ...

        def where(self) -> str:
            return "`look here`"

    run = Run(mode="sync", sinks=[Full()])
    run.train()
    with caplog.at_level(logging.INFO, "esdmon"):
        run.monitor.close()
    assert len(run.steps_read) == 12
    assert "Full has only 10 of 12 readings, since it failed: the first that it lacks is of step 8." in caplog.text
    assert "look: `look here`" in caplog.text


def test_a_folder_that_is_deleted(tmp_path: Path, undisturbed: list[float], caplog: pytest.LogCaptureFixture) -> None:
    """A new file is started, and the loss of the old one is logged."""
    path = tmp_path / "runs" / "esdmon.jsonl"
    run = Run(mode="sync", sinks=[f"jsonl:{path}"])

    def tidy(step: int) -> None:
        if step == 7:
            path.unlink()
            path.parent.rmdir()

    run.train(before=tidy)
    run.monitor.close()
    assert run.losses == undisturbed
    steps = [record["step"] for record in records_in(path)]
    assert sorted(set(steps)) == list(range(8, STEPS + 1, 2))
    assert n_logged(caplog, "was deleted, and its content is lost") == 1
