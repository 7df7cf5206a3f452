"""The callback of Hugging Face in a job of two ranks."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.integrations.runs import assert_sharded_weights_were_read, results_of_ranks, run_script
from tests.jsonl import records_in

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
]  # transformers and its dependencies warn of themselves


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a job of two ranks that trained without a rule to stop on, with one, and with sharded weights."""
    folder = tmp_path_factory.mktemp("ranks")
    run_script("transformers_ddp.py", folder)
    return folder


@pytest.mark.parametrize(("stop_on", "steps"), [("not-asked", {12}), ("asked", {4, 8})])
def test_two_ranks_agree(stop_on: str, steps: set[int], two_ranks: Path) -> None:
    """On when to stop: at the due step of the alert, or the next where a rank read later; rank 0 writes."""
    folder = two_ranks / stop_on
    first, second = results_of_ranks(folder)
    assert first == second
    assert first["steps"] in steps
    assert first["errors"] == 0
    records = records_in(folder / "a.jsonl")
    assert [record["step"] for record in records if record["kind"] == "summary"] == list(
        range(4, first["steps"] + 1, 4)
    )
    assert {record["status"] for record in records if record["kind"] == "layer"} == {"ok"}
    assert len(list(folder.rglob("esdmon.pt"))) == (stop_on == "asked")


def test_weights_that_the_trainer_shards_are_read(two_ranks: Path) -> None:
    """With the values of the whole weights, at each due step; losses are those without a monitor."""
    first, second = results_of_ranks(two_ranks / "sharded")
    for rank in (first, second):
        watched, plain = rank["losses"]
        assert watched == plain != []
        assert rank["errors"] == 0
    names = {name for _, name, *_ in first["read"]}
    assert len(names) == 6  # q, k, v and what follows them, and the two of the block's MLP
    assert sorted((step, name) for step, name, *_ in first["read"]) == [
        (s, n) for s in (4, 8, 12) for n in sorted(names)
    ]
    assert all(status == "ok" and not differing for _, _, status, differing in first["read"])
    assert set(first["held"]) == {True}
    assert second["read"] == []


def test_weights_that_accelerate_shards_are_read(tmp_path: Path) -> None:
    """And count as held by the optimizer, whose parameters Accelerate has replaced."""
    run_script("accelerate_sharded.py", tmp_path)
    assert_sharded_weights_were_read(tmp_path, ["0", "2"])


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
def test_weights_of_deepspeed_are_read(tmp_path: Path) -> None:
    """As the Trainer steps, with ZeRO-2 and ZeRO-3: the values of the whole weights, and no trace in the losses."""
    run_script("transformers_deepspeed.py", tmp_path)
    first, second = results_of_ranks(tmp_path)
    for stage in ("2", "3"):
        assert first[stage]["losses"] == first[stage]["plain"] != []
        assert second[stage]["losses"] == second[stage]["plain"]
        assert first[stage]["errors"] == second[stage]["errors"] == []
        read = first[stage]["read"]
        assert {step for step, *_ in read} == {3, 6, 9, 12}
        assert len(read) == 4 * len({name for _, name, *_ in read}) >= 4 * 6
        assert all(status == "ok" and not differing for _, _, status, differing in read), read
        assert set(first[stage]["in_optimizer"]) == {None}  # it holds copies, flattened
