"""The self-test for a machine with a GPU, as far as it runs without one."""

import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from esdmon.analysis import analyze
from esdmon.runtime.reading.computing import Computing
from esdmon.schedule.priority import ReadPriority
from esdmon.selftest import correctness, costs, harness
from esdmon.selftest.__main__ import main
from esdmon.selftest.checks import CHECKS
from esdmon.selftest.correctness import compared
from esdmon.selftest.harness import Check, Machine, Row
from esdmon.selftest.models import Training
from esdmon.selftest.waiting import counted_waits
from esdmon.weights import Matrix, Transfers
from esdmon.weights.device import update_ratio
from esdmon.weights.device.sample import sample_matrix
from tests.simulated_device import SimulatedDevice


def fails(_: Machine) -> Iterator[Row]:
    yield Row("PASS", "so far", "before")
    message = "injected"
    raise RuntimeError(message)


def passes(machine: Machine) -> Iterator[Row]:
    yield Row("PASS", str(machine.device))


def rows_of(output: str) -> dict[str, str]:
    cells = [line.split(" | ") for line in output.splitlines() if " | " in line]
    return {name.strip(): result.strip() for name, result, *_ in cells[1:]}


def test_a_dry_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The cheap checks pass on a CPU; those of a GPU are skipped, with the reason."""
    file = tmp_path / "rows.json"
    status = main(["--device", "cpu", "--only", "environment,torn,no_wait,graph", "--json", str(file)])
    output = capsys.readouterr().out
    rows = rows_of(output)
    assert status == 0
    assert rows["torn.thread"] == rows["torn.sync"] == rows["torn.control_tear"] == "PASS"
    assert rows["no_wait"] == rows["graph"] == rows["torn.control_unordered"] == "SKIP"
    assert "needs CUDA: graphs" in output
    assert {row["check"] for row in json.loads(file.read_text())["rows"]} == {"environment", "torn", "no_wait", "graph"}


def test_a_check_that_fails_stops_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    """An exception is a FAIL with its message and line, and so is a process that ends otherwise than it should."""
    checks = [Check("wrong", fails), Check("lost", passes, apart=True), Check("right", passes)]
    assert main(["--device", "cpu"], checks) == 1
    output = capsys.readouterr().out
    assert rows_of(output) == {
        "wrong.before": "PASS",
        "wrong": "FAIL",
        "lost.process": "FAIL",
        "right": "PASS",
    }
    assert "RuntimeError: injected at test_selftest.py:" in output
    assert "unknown checks: lost" in output


def test_a_check_that_does_not_end_is_named_with_its_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that takes too long is a FAIL that says where its threads were; the checks after it run."""
    monkeypatch.setattr(harness, "PROCESS_SECONDS", 1)
    checks = [Check("precision", fails, apart=True), Check("right", passes)]  # its process runs the check of that name
    assert main(["--device", "cpu"], checks) == 1
    output = capsys.readouterr().out
    assert rows_of(output) == {"precision.process": "FAIL", "right": "PASS"}
    assert re.search(r"its process ended with status 1: File .*\.py\", line \d+", output)


def test_a_limit_of_no_seconds_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--device", "cpu", "--seconds", "0"])
    assert "--seconds must be 1 or more; got 0" in capsys.readouterr().err


def test_the_interval_of_ratios() -> None:
    """It is the one of Student's t: of 1, 2 and 3 the mean 2 and 4.303 standard errors of 1/√3 to each side."""
    low, high = costs.interval([1.0, 2.0, 3.0])
    assert low == pytest.approx(2 - 4.3027 / 3**0.5, abs=1e-4)
    assert high == pytest.approx(2 + 4.3027 / 3**0.5, abs=1e-4)
    assert costs.interval([1.0, 1.0]) == pytest.approx((1, 1))


def test_an_unknown_check_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--device", "cpu", "--only", "torm"])
    assert "unknown checks: torm" in capsys.readouterr().err


def test_names_are_unique() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS)


def test_a_wrong_reading_is_seen() -> None:
    """Of a weight that differs, and of one that holds NaN."""
    layers = nn.ModuleDict({"one": nn.Linear(64, 96), "two": nn.Linear(64, 96)})
    expected = analyze(layers)
    assert compared(analyze(layers), expected, "", 1e-4).result == "PASS"
    with torch.no_grad():
        layers["one"].get_parameter("weight").mul_(1.001)
        layers["two"].get_parameter("weight")[0, 0] = torch.nan
    row = compared(analyze(layers), expected, "", 1e-4)
    assert row.result == "FAIL"
    assert "one: lambda_max is off by 2.0e-03" in row.detail
    assert "two: nonfinite" in row.detail


def test_waits_are_named_by_the_line_of_esdmon(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch warns of a wait where it is called."""

    def waits(*arguments: object) -> object:
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        return sample_matrix(*arguments)  # type: ignore[arg-type]

    training = Training(Machine(torch.device("cpu")), options={"every": 1, "mode": "sync"})
    monkeypatch.setattr(update_ratio, "sample_matrix", waits)
    with counted_waits() as found:
        training.step()
    assert training.close() == []
    assert found
    assert all(line.startswith("update_ratio.py:") for line in found)


@pytest.mark.parametrize("is_right", [True, False])
def test_eigenvalues_on_a_gpu_are_compared(monkeypatch: pytest.MonkeyPatch, *, is_right: bool) -> None:
    """On a simulated GPU, and on one that reads another weight."""
    monkeypatch.setattr("esdmon.watching.Transfers", lambda: Transfers({"cpu": SimulatedDevice()}))
    monkeypatch.setattr("esdmon.runtime.reading.gpu_solver.seconds_on_device", lambda _matrix: 1e-3)
    monkeypatch.setattr(ReadPriority, "pays_on_device", lambda *_: True)
    layers = {"large": nn.Linear(64, 96), "largest": nn.Linear(80, 80)}
    monkeypatch.setattr(correctness, "zoo", lambda dtype, **_: nn.ModuleDict(layers).to(dtype))
    solve = Computing.solve

    def off(computing: Computing, matrix: Matrix, kind: str) -> object:
        with torch.no_grad():
            matrix.read().mul_(1 if is_right else 1.1)
        return solve(computing, matrix, kind)

    monkeypatch.setattr(Computing, "solve", off)
    rows = list(correctness.on_device(Machine(torch.device("cpu"))))
    assert [row.part for row in rows] == ["float32", "bfloat16", "float16"]
    expected = ["PASS"] * 3 if is_right else ["FAIL"] * 3
    assert [row.result for row in rows] == expected, rows
