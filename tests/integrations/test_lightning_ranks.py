"""The callback of Lightning in a job of two ranks; the tests of one rank run in both of its packages."""

from pathlib import Path

import pytest

from tests.integrations.runs import assert_sharded_weights_were_read, results_of_ranks, run_script
from tests.jsonl import records_in

# Lightning warns of much: few workers, small batches, its own dependencies.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a job of two ranks that trained twice: without a rule to stop on, and with one."""
    folder = tmp_path_factory.mktemp("ranks")
    run_script("lightning_ddp.py", folder)
    return folder


@pytest.mark.parametrize(("stop_on", "steps"), [("not-asked", {20}), ("asked", {5, 10})])
def test_two_ranks_agree(stop_on: str, steps: set[int], two_ranks: Path) -> None:
    """On when to stop, at the due step of the alert or the next, and on the metric that ModelCheckpoint reads."""
    folder = two_ranks / stop_on
    first, second = results_of_ranks(folder)
    assert first == second
    assert first["steps"] in steps
    assert first["errors"] == 0
    records = records_in(folder / "a.jsonl")
    summaries = [record["step"] for record in records if record["kind"] == "summary"]
    assert summaries == list(range(5, first["steps"] + 1, 5))
    assert len(list(folder.rglob("esdmon-checkpoints/*.ckpt"))) == (stop_on == "asked")


def test_sharded_weights_are_read_under_lightning(tmp_path: Path) -> None:
    """By its strategy for parallel models; the last reading is of the weights that the optimizer has left."""
    run_script("lightning_sharded.py", tmp_path)
    assert_sharded_weights_were_read(tmp_path, ["net.0", "net.2"])
