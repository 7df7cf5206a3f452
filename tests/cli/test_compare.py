"""`esdmon scan --compare`: one checkpoint against earlier ones, in one table and in a form that can be drawn."""

import csv
import io
import json
import math
from pathlib import Path

import pytest
import torch

import esdmon
from esdmon.cli import main
from esdmon.cli.compare import steps_of
from esdmon.records.serialization import layer_from_record
from esdmon.replay import reports

SHAPES = {"a.weight": (90, 60), "b.weight": (80, 50), "c.weight": (24, 20, 3, 3)}


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three checkpoints: `a` gets a spike, then a larger one; `b` is still; `c` moves at the last."""
    folder = tmp_path_factory.mktemp("run7")
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    paths = []
    for step in (50, 200, 1000):
        weights = {name: weight.clone() for name, weight in weights.items()}
        weights["a.weight"] += 0.0 if step == 50 else 1.0
        weights["c.weight"] *= 1.5 if step == 1000 else 1.0
        paths.append(str(folder / f"step-{step}.pt"))
        torch.save(weights, paths[-1])
    return paths


def changed(path: str, to: Path, **weights: torch.Tensor | None) -> str:
    """Write a checkpoint with some weights replaced or left out, and return its path."""
    loaded = torch.load(path) | {f"{name}.weight": weight for name, weight in weights.items()}
    torch.save({name: weight for name, weight in loaded.items() if weight is not None}, to)
    return str(to)


def test_a_series_is_one_table(steps: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A row for each layer, the most moved first, with the values of all checkpoints."""
    *earlier, latest = steps
    assert main(["scan", latest, "--compare", *earlier]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"from {' → '.join(steps)}"
    assert [line.split()[0] for line in lines[2:5]] == ["a", "c", "b"]
    soft_ranks = [f"{esdmon.analyze(path)['a'].measures['mp_soft_rank']:.2f}" for path in steps]
    assert " → ".join(soft_ranks) in lines[2]
    assert "random-like → bulk+spikes" in lines[2]
    assert "0.00% → 50.00%" in lines[3]
    assert any(line.startswith("verdict: none of 3 layers") for line in lines)


def test_the_columns_of_a_series_are_chosen(steps: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """By the same names, and so is the order."""
    options = ["--columns", "hard_rank", "frobenius_norm", "--sort", "layer", "--reverse"]
    assert main(["scan", steps[2], "--compare", *steps[:2], *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    norms = [f"{esdmon.analyze(path)['c'].measures['frobenius_norm']:.4g}" for path in steps[1:]]
    assert lines[2].split() == ["c", "180/180", norms[0], "→", norms[1]]
    assert [line.split()[0] for line in lines[2:5]] == ["c", "b", "a"]


def test_the_json_of_a_series_can_be_drawn(steps: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Records as in the JSONL of a run, with the steps that the paths name, and the values of `analyze`."""
    assert main(["scan", steps[2], "--compare", *steps[:2], "--json", "--exact"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(each["path"], each["step"]) for each in found["checkpoints"]] == list(
        zip(steps, (50, 200, 1000), strict=True)
    )
    readings = [record for record in found["series"] if record["kind"] == "layer"]
    for path, step in zip(steps, (50, 200, 1000), strict=True):
        read = [layer_from_record(record) for record in readings if record["step"] == step]
        expected = esdmon.analyze(path, precision="exact")
        assert {layer.name: layer.phase for layer in read} == {layer.name: layer.phase for layer in expected}
        for layer in read:
            distance = layer.measures["spectral_distance"]
            assert math.isnan(distance) == (step == 50)  # from the checkpoint before
            measures = {"spectral_distance": distance, **expected[layer.name].measures}
            assert layer.measures == pytest.approx(measures, nan_ok=True)
    (a,) = [layer for layer in found["layers"] if layer["name"] == "a"]
    assert a["before_phase"] == a["phase"] == "bulk+spikes"
    assert a["before_N"] == a["N"] == 90


def test_the_jsonl_of_a_series_is_that_of_a_run(
    steps: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever reads runs reads it, such as the replay of alerts."""
    assert main(["scan", steps[2], "--compare", *steps[:2], "--jsonl"]) == 0
    (tmp_path / "series.jsonl").write_text(capsys.readouterr().out, encoding="utf-8")
    read = list(reports(tmp_path / "series.jsonl"))
    assert [report.step for report in read] == [50, 200, 1000]
    for path, report in zip(steps, read, strict=True):
        assert {layer.name: layer.phase for layer in report} == {
            layer.name: layer.phase for layer in esdmon.analyze(path)
        }
    assert math.isnan(read[0]["c"].update_ratio)
    assert read[2]["c"].update_ratio == pytest.approx(0.5)
    assert main(["alerts", "replay", str(tmp_path / "series.jsonl")]) == 0


def test_csv_of_a_series_is_a_line_for_each_reading(steps: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """With the checkpoint and its step; of two checkpoints the earlier values stand beside the later."""
    assert main(["scan", steps[2], "--compare", *steps[:2], "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["checkpoint"], row["name"]) for row in rows] == [(path, name) for name in "acb" for path in steps]
    assert main(["scan", steps[2], "--compare", steps[0], "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["name"], row["before_phase"]) for row in rows if row["name"] == "a"] == [("a", "random-like")]


@pytest.mark.parametrize("shape", [(90, 40), (60, 90)], ids=["other", "transposed"])
def test_other_shapes_are_not_compared(
    shape: tuple[int, int], steps: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table says which they are, and JSON has no numbers that a script would subtract."""
    path = changed(steps[2], tmp_path / "b.pt", a=torch.randn(shape))
    assert main(["scan", path, "--compare", steps[0], "--columns", "moved", "alpha", "phase", "shape"]) == 0
    out = capsys.readouterr().out
    rows, columns = shape
    assert f"a: of another shape, not compared: 90 × 60 → {rows} × {columns}" in out
    (row,) = [line for line in out.splitlines() if line.startswith("a  ")]
    assert "%" not in row
    assert "not compared" in row
    assert main(["scan", path, "--compare", steps[0], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (a,) = [layer for layer in found["layers"] if layer["name"] == "a"]
    assert (a["comparable"], a["update_ratio"], a["before_alpha"], a["before_phase"]) == (False, None, None, None)
    assert (a["before_N"], a["before_M"]) == (90, 60)
    (c,) = [layer for layer in found["layers"] if layer["name"] == "c"]
    assert c["comparable"]
    assert c["update_ratio"] == pytest.approx(0.5)


def test_what_cannot_be_read_in_one_says_so(
    steps: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the checkpoint it is in; the exit status is that of the latest."""
    bad = torch.randn(SHAPES["a.weight"])
    bad[0, 0] = math.inf
    path = changed(steps[1], tmp_path / "bad.pt", a=bad)
    assert main(["scan", steps[2], "--compare", path]) == 0
    out = capsys.readouterr().out
    assert f"a: 1 of 5400 elements are NaN or infinite (in {path})" in out
    assert "nonfinite → bulk+spikes" in out
    assert main(["scan", path, "--compare", steps[0]]) == 1


NOT_FINITE = torch.randn(SHAPES["a.weight"]).index_put((torch.tensor(7), torch.tensor(7)), torch.tensor(math.nan))
NOT_COMPARED: dict[str, tuple[torch.Tensor, str, str]] = {
    "NaN": (NOT_FINITE, "not compared", "a: 1 of 5400 elements are NaN or infinite"),
    "infinite": (NOT_FINITE.nan_to_num(math.inf), "not compared", "a: 1 of 5400 elements are NaN or infinite"),
    "not readable": (NOT_FINITE.to(torch.complex64), "not compared", "a: its numbers are complex"),
    "another shape": (torch.randn(90, 40), "not compared", "a: of another shape, not compared"),
}


@pytest.mark.parametrize("kind", NOT_COMPARED)
@pytest.mark.parametrize("is_latest", [True, False])
def test_what_cannot_be_compared_says_so_and_is_counted(
    kind: str, steps: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], *, is_latest: bool
) -> None:
    """Not how far it has moved, where the sample has missed the element that is not finite."""
    weight, cell, reason = NOT_COMPARED[kind]
    other = changed(steps[0], tmp_path / "other.pt", a=weight)
    latest, earlier = (other, steps[0]) if is_latest else (steps[0], other)
    main(["scan", latest, "--compare", earlier, "--columns", "moved"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=1) for line in lines[1:4]] == [["b", "0.00%"], ["c", "0.00%"], ["a", cell]]
    assert any(line.startswith(reason) for line in lines)
    assert "not compared, for the reasons above: 1 of 3 layers (a)" in lines
    main(["scan", latest, "--compare", earlier, "--json"])
    layers = {layer["name"]: layer for layer in json.loads(capsys.readouterr().out)["layers"]}
    assert [layers[name]["comparable"] for name in "abc"] == [False, True, True]
    assert [layers[name]["update_ratio"] for name in "abc"] == [None, 0, 0]


def test_a_weight_that_was_zero_has_moved_the_farthest(
    steps: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without limit relative to nothing; one that becomes zero by all of its norm."""
    zero = changed(steps[0], tmp_path / "zero.pt", b=torch.zeros(SHAPES["b.weight"]))
    main(["scan", steps[0], "--compare", zero, "--columns", "moved"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["b", "∞"]
    assert f"b: all weights are zero (in {zero})" in lines
    main(["scan", zero, "--compare", steps[0], "--columns", "moved"])
    assert capsys.readouterr().out.splitlines()[1].split() == ["b", "100.00%"]


def test_another_dtype_is_named(steps: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is shown as moved is then the rounding."""
    b = torch.load(steps[0])["b.weight"]
    path = changed(steps[0], tmp_path / "b.pt", b=b.bfloat16())
    assert main(["scan", path, "--compare", steps[0]]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "b: of another dtype, so that moved includes the rounding: float32 → bfloat16" in lines
    assert not any("not compared" in line for line in lines)


def test_what_not_all_have_is_named_and_not_counted_as_read(
    steps: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the coverage as well."""
    path = changed(steps[1], tmp_path / "b.pt", b=None, d=torch.randn(40, 30))
    assert main(["scan", steps[2], "--compare", steps[0], path]) == 0
    out = capsys.readouterr().out
    assert f"b: only in {steps[0]}, {steps[2]}" in out
    assert f"d: only in {path}" in out
    assert "not watched: b.weight (not in all checkpoints)" in out


def test_nothing_in_common_is_an_error(steps: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With names of both, as `--reference` says it."""
    torch.save({"encoder.x.weight": torch.randn(40, 30)}, tmp_path / "other.pt")
    other = str(tmp_path / "other.pt")
    assert main(["scan", steps[2], "--compare", steps[0], other]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        f"esdmon scan: --compare: {other} and {steps[2]} have no matrix in common: the first has encoder.x, "
        "the other a, b, c\n"
    )


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["step-50", "step-1000"], [50, 1000]),
        (["run2/5/model.safetensors", "run2/20/model.safetensors"], [5, 20]),
        (["step-1000", "step-50"], [0, 1]),
        (["a-1", "b"], [0, 1]),
        (["only-7"], [0]),
        (["epoch-1-step-10", "epoch-1-step-20", "epoch-2-step-30"], [10, 20, 30]),
    ],
)
def test_the_step_is_the_number_that_rises(paths: list[str], expected: list[int]) -> None:
    """In the paths, and their order where there is none."""
    assert steps_of(paths) == expected
