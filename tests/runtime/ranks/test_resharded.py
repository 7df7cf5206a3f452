"""A run that is resumed on another number of ranks, or cut in another way, goes on as one that was not."""

import json
from pathlib import Path
from typing import Any

import pytest

from esdmon.replay import records
from tests.ranks import start
from tests.runtime.ranks.resharded_jobs import EVERY, FROZEN, SAVED, SHAPES, STEPS, rank_of_a_run

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:multiprocessing")

WAYS = [
    (("fsdp2", 2), ("whole", 1)),
    pytest.param(("whole", 1), ("fsdp2", 2), marks=pytest.mark.slow),
    pytest.param(("fsdp2", 2), ("fsdp2", 4), marks=pytest.mark.slow),
    pytest.param(("fsdp2", 4), ("fsdp2", 2), marks=pytest.mark.slow),
    pytest.param(("ddp", 2), ("fsdp2", 2), marks=pytest.mark.slow),
    (("stages", 2), ("stages", 3)),
    pytest.param(("stages", 3), ("fsdp2", 2), marks=pytest.mark.slow),
]


def run(folder: Path, way: str, size: int) -> None:
    if size == 1:
        rank_of_a_run(0, way, str(folder), 1)
    else:
        start(rank_of_a_run, way, str(folder), size, ranks=size)


def found(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """The readings, reports and alerts of a run."""
    lines = list(records(folder / "esdmon.jsonl"))
    return (
        [line for line in lines if line["kind"] == "layer"],
        [line for line in lines if line["kind"] == "summary"],
        [line for line in lines if line["kind"] == "alert"],
    )


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in one process, saved and resumed there."""
    folder = tmp_path_factory.mktemp("unbroken")
    for _ in range(2):
        run(folder, "whole", 1)
    return folder


@pytest.mark.parametrize(("saved", "resumed"), WAYS)
def test_readings_and_alerts_go_on(
    saved: tuple[str, int], resumed: tuple[str, int], tmp_path: Path, unbroken: Path
) -> None:
    """Each layer is read once at each due step, with the values of the run that was not cut; alerts come once.

    One that is frozen is read no more once that is known.
    """
    run(tmp_path, *saved)
    run(tmp_path, *resumed)
    results = [json.loads(path.read_text()) for path in tmp_path.glob("result-*.json")]
    assert [(result["errors"], result["dropped"]) for result in results] == [([], 0)] * (saved[1] + resumed[1])
    read, reports, alerts = found(tmp_path)
    expected, expected_reports, expected_alerts = found(unbroken)
    steps = [*range(EVERY, STEPS + 1, EVERY)]
    assert [line["step"] for line in reports] == [line["step"] for line in expected_reports] == steps
    places = [(line["step"], line["name"]) for line in read]
    frozen = {(step, "fourth") for step in steps if step > FROZEN}
    assert sorted({*places} | frozen) == sorted((step, name) for step in steps for name in SHAPES)
    assert len(places) == len({*places})
    if resumed[0] != "stages":  # rank 0 does not know of a whole layer elsewhere that it is frozen
        assert steps[-1] not in {step for step, name in places if name == "fourth"}
    values = {(line["step"], line["name"]): line for line in expected}
    for line in read:
        same = values.get((line["step"], line["name"]), {})
        for key in ("status", "phase", "alpha", "stable_rank", "frobenius_norm", "mp_soft_rank") if same else ():
            assert line[key] == same[key], (key, line)
        if line["update_ratio"] is None:  # not known of what another rank held before
            assert line["step"] in (EVERY, SAVED + EVERY), line
        elif same:
            assert line["update_ratio"] == pytest.approx(same["update_ratio"], rel=0.1), line
    keys = ("rule", "state", "step", "layers", "since")
    shown = [[line.get(key) for key in keys] for line in alerts]
    assert shown == [[line.get(key) for key in keys] for line in expected_alerts]
    assert ["rank_collapse", "firing"] in [line[:2] for line in shown]
