"""`esdmon scan`: what it prints, in which form, with which exit status."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

import esdmon
from esdmon.cli import main
from esdmon.cli.scan import Ranks, split
from esdmon.weights import discover

SHAPES = {"embed.weight": (300, 40), "a.weight": (200, 150), "b.weight": (90, 70), "c.weight": (64, 32, 3, 3)}


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.save(weights(), tmp_path / "a.pt")
    return tmp_path / "a.pt"


def test_the_table_is_that_of_analyze(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In 80 columns, with the coverage under it."""
    assert main(["scan", str(checkpoint)]) == 0
    out = capsys.readouterr().out
    assert out.strip() == str(esdmon.analyze(checkpoint))
    assert [line.split()[0] for line in out.splitlines()[1:4]] == ["a", "b", "c"]
    assert max(map(len, out.splitlines()[:4])) <= 80


def test_json_is_one_object(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the records of the report and what was skipped."""
    assert main(["scan", str(checkpoint), "--json", "--exact", "--layers", "a", "c"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["layers"] == esdmon.analyze(checkpoint, precision="exact", layers=["a", "c"]).to_records()
    assert {skip["name"] for skip in found["coverage"]["skipped"]} == {"embed.weight", "b.weight"}


def test_csv_is_a_line_for_each_matrix(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a spreadsheet or pandas reads it."""
    assert main(["scan", str(checkpoint), "--csv", "--measures", "all", "--exclude", "c"]) == 0
    out = capsys.readouterr().out
    assert [row["name"] for row in csv.DictReader(io.StringIO(out))] == ["a", "b"]
    frame = pd.read_csv(io.StringIO(out))
    assert frame["stable_rank"].tolist() == pytest.approx(
        [layer.measures["stable_rank"] for layer in esdmon.analyze(checkpoint, layers=["a", "b"])]
    )
    assert frame["participation_bulk"].notna().all()


def test_compare_tells_what_moved(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The most moved first; what is in one alone is named."""
    later = weights()
    later["b.weight"] += 0.1 * weights(1)["b.weight"]
    later["a.weight"] += torch.outer(torch.ones(200), torch.ones(150))
    later["d.weight"] = later.pop("c.weight")
    path = checkpoint.with_name("b.pt")
    torch.save(later, path)
    assert main(["scan", str(path), "--compare", str(checkpoint)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["layer", "a", "b"]
    assert "random-like → bulk+spikes" in lines[1]
    assert lines[3:5] == ["only in the later: d", "only in the earlier: c"]
    assert main(["scan", str(path), "--compare", str(checkpoint), "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["layers"]
    assert first["update_ratio"] == pytest.approx(1, rel=0.1)
    assert second["update_ratio"] == pytest.approx(0.1, rel=0.1)
    assert (first["before_phase"], first["phase"]) == ("random-like", "bulk+spikes")
    assert first["before_stable_rank"] == esdmon.analyze(checkpoint)["a"].measures["stable_rank"]


def test_reference_reads_the_difference(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where nothing has moved every matrix says so."""
    assert main(["scan", str(checkpoint), "--reference", str(checkpoint)]) == 0
    assert "equal to the reference" in capsys.readouterr().out


def test_a_weight_that_is_not_finite_gives_status_1(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """So that a script knows; the others have their numbers."""
    bad = weights()
    bad["a.weight"][3, 4] = float("nan")
    torch.save(bad, checkpoint)
    assert main(["scan", str(checkpoint)]) == 1
    out = capsys.readouterr().out
    assert "a: 1 of 30000 elements are NaN or infinite" in out
    assert "random-like" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.pt"], "esdmon scan: missing.pt does not exist"),
        (["a.pt", "--compare", "missing.pt"], "esdmon scan: missing.pt does not exist"),
        (["a.pt", "--layers", "aa"], "esdmon scan: layers='aa' matches no layer. Did you mean 'a'"),
        (["a.pt", "--measures", "alhpa"], "esdmon scan: Unknown measure 'alhpa' in measures=. Did you mean 'alpha"),
        (["."], "esdmon scan: . contains 2 checkpoints. Pass one of them"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_read_gives_status_2_and_one_line(
    arguments: list[str],
    message: str,
    checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On standard error, and nothing on standard output."""
    monkeypatch.chdir(checkpoint.parent)
    torch.save(weights(), "b.pt")
    assert main(["scan", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(message)
    assert captured.err.count("\n") == 1


def run(*arguments: str, stdout: int | io.BufferedWriter = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "esdmon", "scan", *arguments],
        # One thread, as torchrun sets it: the last digits depend on that. With a buffer, as most users have it.
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": ""},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_line(checkpoint: Path) -> None:
    """No traceback at exit either."""
    with Path("/dev/full").open("wb") as full:
        result = run(str(checkpoint), stdout=full)
    assert (result.returncode, result.stderr) == (2, "esdmon scan: cannot write: No space left on device\n")


def test_a_reader_that_leaves_early_is_no_traceback(checkpoint: Path) -> None:
    """`esdmon scan … | head -1`."""
    command = f"{sys.executable} -m esdmon scan {checkpoint} --json --measures all | true"
    result = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=False)
    assert result.stderr == ""


def test_ranks_share_the_work_and_rank_0_writes(checkpoint: Path) -> None:
    """Under torchrun, the same output as from one process."""
    alone = run(str(checkpoint), "--json", "--exact")
    together = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *("-m", "esdmon", "scan", str(checkpoint), "--json", "--exact"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(together.stdout) == json.loads(alone.stdout)


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_each_matrix_is_one_ranks(count: int) -> None:
    """All of them, none twice, and the largest not together."""
    matrices = discover(weights()).matrices
    parts = [[matrix.name for matrix in split(matrices, Ranks(rank, count))] for rank in range(count)]
    assert sorted(name for part in parts for name in part) == ["a", "b", "c"]
    assert max(map(len, parts)) == {1: 3, 2: 2, 3: 1, 9: 1}[count]
