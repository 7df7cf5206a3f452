"""`esdmon scan`: what it prints, in which form, with which exit status."""

import csv
import io
import json
import re
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

import esdmon
from esdmon.cli import main
from tests.cli.checkpoints import weights


def test_the_table_has_the_readings_of_analyze(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the verdict and the coverage under it."""
    assert main(["scan", str(checkpoint)]) == 0
    lines = capsys.readouterr().out.splitlines()
    report = esdmon.analyze(checkpoint)
    assert [line.split()[:2] for line in lines[1:4]] == [["a", "linear"], ["b", "linear"], ["c", "conv2d"]]
    assert [line.split()[-2:] for line in lines[1:4]] == [
        [f"{layer.n_eigenvalues}/{layer.n_eigenvalues}", str(int(layer.measures["n_spikes"]))] for layer in report
    ]
    assert lines[-4].startswith("verdict: none of 3 layers is over-regularised")
    assert lines[-3:] == str(report.coverage).replace("name them in layers=", "name them in --layers").splitlines()


def test_names_are_whole_outside_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """However long they are; line breaks and control characters do not break the table or the terminal."""
    names = [f"model.decoder.{'very.' * 12}long.{part}" for part in ("a", "b")] + ["line\nbreak\x1b[31m"]
    torch.save({f"{name}.weight": torch.randn(40, 30) for name in names}, tmp_path / "a.pt")
    assert main(["scan", str(tmp_path / "a.pt")]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[1:4]] == [*names[:2], r"line\nbreak\x1b[31m"]
    assert "\x1b" not in out


def test_columns_and_order_are_chosen(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A column may need a measure that is not computed by default; CSV has the same columns."""
    options = ["--columns", "dtype", "participation_bulk", "--sort", "stable_rank", "--reverse"]
    assert main(["scan", str(checkpoint), *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.split(r"\s{2,}", lines[0]) == ["layer", "dtype", "participation bulk"]
    assert all(float(line.split()[2]) > 0 for line in lines[1:4])
    by_rank = sorted(esdmon.analyze(checkpoint), key=lambda layer: -layer.measures["stable_rank"])
    assert [line.split()[0] for line in lines[1:4]] == [layer.name for layer in by_rank]
    assert main(["scan", str(checkpoint), *options, "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [*rows[0]] == ["name", "dtype", "participation_bulk"]
    assert [row["name"] for row in rows] == [layer.name for layer in by_rank]


def test_rows_that_are_left_out_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a difference, rows that did not change."""
    before = {"a.weight": torch.randn(60, 40)}
    after = {"a.weight": before["a.weight"] + torch.cat([torch.randn(50, 40), torch.zeros(10, 40)])}
    torch.save(before, tmp_path / "a.pt")
    torch.save(after, tmp_path / "b.pt")
    assert main(["scan", str(tmp_path / "b.pt"), "--reference", str(tmp_path / "a.pt")]) == 0
    out = capsys.readouterr().out
    assert "50 × 40" in out
    assert "a: N × M is without 10 unchanged rows" in out


def test_kernel_positions_that_are_left_out_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weight = torch.randn(96, 64, 3, 3)
    weight[:, :, 2] = 0
    torch.save({"a.weight": weight}, tmp_path / "a.pt")
    assert main(["scan", str(tmp_path / "a.pt")]) == 0
    out = capsys.readouterr().out
    assert "96 × 64 × 6" in out
    assert "a: N × M is without 3 dead slices" in out


@pytest.mark.parametrize("shape", [(8, 40), (9, 9)])
def test_nothing_that_can_be_read_gives_status_2(
    shape: tuple[int, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as an adapter of rank 8: the table says why, and so does a line on standard error."""
    torch.save({"a.weight": torch.randn(shape), "b.weight": torch.randn(shape)}, tmp_path / "a.pt")
    assert main(["scan", str(tmp_path / "a.pt")]) == 2
    captured = capsys.readouterr()
    assert captured.err == (f"esdmon scan: no matrix could be read: {min(shape)} eigenvalues; at least 10 are needed\n")
    assert "watching 0.0% of" in captured.out


def test_the_coverage_counts_what_was_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A weight whose dtype holds no real numbers is not watched, from a file as from a mapping."""
    weights = {"a.weight": torch.randn(40, 30), "b.weight": torch.randn(40, 30).to(torch.complex64)}
    torch.save(weights, tmp_path / "a.pt")
    assert main(["scan", str(tmp_path / "a.pt")]) == 0
    out = capsys.readouterr().out
    assert "watching 50.0% of 2,400 parameters" in out
    assert str(esdmon.analyze(tmp_path / "a.pt").coverage) in out
    assert esdmon.analyze(weights).coverage.share == esdmon.analyze(tmp_path / "a.pt").coverage.share == 0.5


def test_json_is_one_object(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the records of the report and what was skipped."""
    assert main(["scan", str(checkpoint), "--json", "--exact", "--layers", "a", "c"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [layer.pop("type") for layer in found["layers"]] == ["linear", "conv2d"]
    assert found["layers"] == esdmon.analyze(checkpoint, precision="exact", layers=["a", "c"]).to_records()
    assert {skip["name"] for skip in found["coverage"]["skipped"]} == {"embed.weight", "b.weight"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with several checkpoints, of which one has the usual name."""
    (tmp_path / "run7" / "checkpoint-500").mkdir(parents=True)
    save_file(weights(), tmp_path / "run7" / "model.safetensors")
    save_file(weights(1), tmp_path / "run7" / "checkpoint-500" / "model.safetensors")
    for name in ("best.pt", "adapter_model.bin", "optimizer.pt"):
        torch.save(weights(2), tmp_path / "run7" / name)
    return tmp_path / "run7"


READ_AND_NOT = [
    "read from {}: model.safetensors",
    "not read, in {}: adapter_model.bin, best.pt, checkpoint-500. To read one of them, pass its path.",
]


def test_what_was_read_of_a_folder_is_named_and_what_was_not(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Above the table, and in JSON; on standard error beside CSV and JSONL. So is the folder of a reference."""
    expected = [line.format(folder) for line in READ_AND_NOT]
    inner = folder / "checkpoint-500"
    assert main(["scan", str(folder)]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == expected
    assert main(["scan", str(inner), "--reference", str(folder)]) == 0
    read, *others = capsys.readouterr().out.splitlines()[:3]
    assert read == f"read from {inner}: model.safetensors"
    assert others == [f"W₀ {expected[0]}", expected[1]]
    assert main(["scan", str(folder), "--compare", str(inner)]) == 0
    assert capsys.readouterr().out.splitlines()[:3] == [read, *expected]
    for form in ("--csv", "--jsonl"):
        assert main(["scan", str(folder), form]) == 0
        assert capsys.readouterr().err.splitlines() == [f"esdmon scan: {line}" for line in expected]
    assert main(["scan", str(folder), "--json", "--reference", str(inner)]) == 0
    own, reference = json.loads(capsys.readouterr().out)["origins"]
    assert (own["path"], own["files"], own["is_reference"]) == (str(folder), ["model.safetensors"], False)
    assert own["unread"] == ["adapter_model.bin", "best.pt", "checkpoint-500"]
    assert (reference["path"], reference["is_reference"], reference["unread"]) == (str(inner), True, [])


def test_a_file_alone_needs_no_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The user has named it."""
    assert main(["scan", str(folder / "best.pt")]) == 0
    assert "read from" not in capsys.readouterr().out
    assert main(["scan", str(folder / "best.pt"), "--json"]) == 0
    (origin,) = json.loads(capsys.readouterr().out)["origins"]
    assert (origin["files"], origin["unread"]) == (["best.pt"], [])


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


def test_compare_says_what_moved(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    assert {"d: only in the later", "c: only in the earlier"} <= set(lines)
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


def test_a_difference_is_not_over_regularised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same matrix is, where it is the weight."""
    left, right = (torch.linalg.qr(torch.randn(size, 160))[0] for size in (300, 160))
    change = left * torch.linspace(0.003, 1, 160) ** -0.8 @ right.T  # λ as a power law of alpha 1.6
    before = torch.randn(300, 160)
    torch.save({"a.weight": change}, tmp_path / "change.pt")
    torch.save({"a.weight": before}, tmp_path / "before.pt")
    torch.save({"a.weight": before + change}, tmp_path / "after.pt")
    assert main(["scan", str(tmp_path / "change.pt")]) == 0
    assert "verdict: 1 of 1 layer over-regularised (a)" in capsys.readouterr().out
    arguments = ["scan", str(tmp_path / "after.pt"), "--reference", str(tmp_path / "before.pt")]
    assert main(arguments) == 0
    assert "verdict: no fault in the change of 1 layer; 1 with learned structure" in capsys.readouterr().out
    assert main([*arguments, "--json"]) == 0
    (layer,) = json.loads(capsys.readouterr().out)["layers"]
    assert (layer["view"], layer["alpha_is_meaningful"], layer["over_regularized"]) == ("difference", True, False)


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
        (["a\0b.pt"], r"esdmon scan: a\x00b.pt does not exist"),
        (["s3://b/a.pt"], "esdmon scan: s3:/b/a.pt does not exist. It looks like an address: download the file"),
        (["a.pt", "--compare", "missing.pt"], "esdmon scan: missing.pt does not exist"),
        (["a.pt", "--layers", "aa"], "esdmon scan: --layers 'aa' matches no layer. Did you mean 'a'"),
        (["a.pt", "--columns", "alhpa"], "esdmon scan: unknown column 'alhpa' in --columns. Did you mean 'alpha'"),
        (["a.pt", "--sort", "alhpa"], "esdmon scan: unknown column 'alhpa' in --sort. Did you mean 'alpha'"),
        (["a.pt", "--columns", "alpha", "--json"], "esdmon scan: --columns chooses columns of a table or of CSV"),
        (["a.pt", "--measures", "alhpa"], "esdmon scan: unknown measure 'alhpa' in --measures. Did you mean 'alpha"),
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
