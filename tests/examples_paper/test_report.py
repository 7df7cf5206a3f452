"""Tables and pictures of the experiments, from runs that are made here."""

import json
from pathlib import Path

import pytest
import torch

from examples.paper import __main__ as command
from examples.paper.experiments import Experiment, experiments
from examples.paper.report import write_report
from examples.paper.training import Recipe, Result, run

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


def quietly(_share: float) -> None:
    pass


def tiny(**settings: object) -> Recipe:
    options: dict[str, object] = {"network": "SETOL MLP3", "batch_size": 64, "lr": 0.01, "epochs": 1} | settings
    return Recipe(**options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Result]]:
    """Two batch sizes with two seeds, two learning rates, and one run that diverges."""
    folder = tmp_path_factory.mktemp("runs")

    def runs(*recipes: Recipe) -> list[Result]:
        return [run(recipe, folder, device=CPU, progress=quietly) for recipe in recipes]

    return {
        "batch-size": runs(*(tiny(batch_size=size, seed=seed) for seed in (0, 1) for size in (100, 16))),
        "learning-rate": runs(*(tiny(lr=rate) for rate in (0.005, 0.02, 1e12))),
        "collapse": runs(tiny(lr=0.05, weight_decay=0.03, batch_size=16, epochs=8)),
    }


def test_the_report_contains_what_was_measured(results: dict[str, list[Result]], tmp_path: Path) -> None:
    """Phases, ranks and accuracy as in the results; a median over seeds with its range; pictures beside it."""
    text = write_report(results, tmp_path)
    assert (tmp_path / "report.md").read_text() == text
    for name in ("phases", "batch_size", "learning_rate", "epochs"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    ranks = sorted(run.measure("fc1", "stable_rank") for run in results["batch-size"] if run.recipe.batch_size == 16)
    line = next(line for line in text.splitlines() if line.startswith("| 16 |"))
    assert f"{sum(ranks) / 2:.1f} [{ranks[0]:.1f}, {ranks[1]:.1f}]" in line
    assert "bulk+spikes, .60" in line
    assert "| FC1 | 4096 × 384 |" in text
    assert "not reached in" in text
    assert len(json.loads((tmp_path / "report.json").read_text())) == 8


def test_rises_are_reported(results: dict[str, list[Result]], tmp_path: Path) -> None:
    """A measure that does not fall with the batch size is named with the sizes and the seed."""
    backwards = [
        Result(**{field: getattr(run, field) for field in Result.__dataclass_fields__} | {"recipe": swapped})
        for run in results["batch-size"]
        if run.recipe.seed == 0
        for swapped in [tiny(batch_size={100: 16, 16: 100}[run.recipe.batch_size])]
    ]
    assert "- FC1, stable rank: 100 → 16 (seed 0)" in write_report({"batch-size": backwards}, tmp_path)


def test_full_contains_quick() -> None:
    """So that a full run goes on from a quick one; real data only where they are."""
    quick = {recipe.name for experiment in experiments(full=False) for recipe in experiment.recipes}
    every = [recipe.name for experiment in experiments(full=True) for recipe in experiment.recipes]
    assert quick < set(every)
    assert {"cifar10", "mnist"} == {
        experiment.name for experiment in experiments(full=False, cifar10=Path("c"), mnist=Path("m"))
    } - {experiment.name for experiment in experiments(full=False)}


def test_the_command_runs_reports_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With short recipes in place of the long ones."""
    chosen = [Experiment("collapse", "one", (tiny(),)), Experiment("setol", "two", (tiny(), tiny(seed=1)))]
    monkeypatch.setattr(command, "experiments", lambda **_: chosen)
    arguments = ["--quick", "--out", str(tmp_path)]
    assert command.main(arguments) == 0
    first = capsys.readouterr().out
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    assert len(stamps) == 4
    assert command.main([*arguments, "--only", "setol"]) == 0
    assert capsys.readouterr().out in first.replace(first[first.index("## collapse") : first.index("## setol")], "")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()} == stamps


def test_an_unknown_experiment_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """With those that there are."""
    with pytest.raises(SystemExit, match="2"):
        command.main(["--quick", "--only", "batchsize"])
    assert "unknown experiment 'batchsize' in --only. Available: batch-size, learning-rate" in capsys.readouterr().err
