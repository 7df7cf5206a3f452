"""Jobs of several ranks on one machine, by gloo."""

from pathlib import Path

import pytest

from esdmon.replay import records
from tests.runtime.ranks.distributed_jobs import STEPS, log, run
from tests.summaries import without_summary

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:multiprocessing")


@pytest.mark.parametrize("job", ["shared", "shared-thread"])
def test_ranks_share_the_reading_and_one_writes(job: str, tmp_path: Path) -> None:
    """Each matrix once at each due step, none twice; the losses are those of a run without a monitor."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    results = run(job, tmp_path / "a")
    found = list(records(tmp_path / "a" / "rank-0.jsonl"))
    read = [(record["step"], record["name"]) for record in found if record["kind"] == "layer"]
    assert read == [(step, name) for step in (3, 6, 9, 12) for name in ("0", "2", "4")]
    assert not (tmp_path / "a" / "rank-1.jsonl").exists()
    by_rank = [{(step, name) for step, name in result["read"]} for result in results]
    assert by_rank[0] | by_rank[1] == set(read)
    assert not by_rank[0] & by_rank[1]
    assert {step for step, _ in by_rank[1]} == {3, 6, 9, 12}  # at 1 they announce what they hold, at 2 rank 0 plans 3
    later = [record for record in found if record["kind"] == "layer" and record["step"] > 3]
    assert all(0 < record["update_ratio"] < 1 for record in later)
    assert all(0 < record["spectral_distance"] < 0.5 for record in later)  # from another rank's reading, too
    assert all(record["in_optimizer"] for record in found if record["kind"] == "layer")
    assert [log(tmp_path / "a", rank) for rank in (0, 1)] == ["", ""]
    assert [result["losses"] for result in results] == run("unwatched", tmp_path / "b")


def test_a_monitor_on_rank_0_alone_reads_all(tmp_path: Path) -> None:
    """No collective, so nobody waits for anybody."""
    assert run("only-on-rank-0", tmp_path) == [[3, 3, 3, 3], []]


def test_ranks_without_a_word_go_on_without(tmp_path: Path) -> None:
    """Nobody waits, and nothing is logged."""
    assert run("not-on-rank-0", tmp_path) == [[], []]
    assert log(tmp_path, 1) == ""


def test_a_rank_that_fails_to_read_says_so(tmp_path: Path) -> None:
    """With a status for each of its matrices; the run ends."""
    statuses, _ = run("one-fails", tmp_path)
    assert all(set(statuses[step].values()) == {"failed", "ok"} for step in ("3", "12"))


def test_a_rank_that_dies_is_done_without(tmp_path: Path) -> None:
    """What it was given is lost; later the others read it."""
    names, _ = run("one-dies", tmp_path)
    assert len(names[0]) == 3
    assert min(map(len, names)) < 3
    assert names[-1] == ["0", "2", "4"]
    assert "reading on rank 1 has failed 3 times in a row and is paused for 10 due steps" in log(tmp_path, 0)


def test_other_weights_under_one_name_are_read_each(tmp_path: Path) -> None:
    """Under `name@rank`, so that no curve jumps between models; what is the same on all ranks keeps its name."""
    for job in ("different", "one-expert-differs"):
        (tmp_path / job).mkdir()
    first, second = run("different", tmp_path / "different")
    assert first[-1] == [f"{layer}@{rank}" for rank in (0, 1) for layer in ("0", "2", "4")]
    assert second == []
    first, _ = run("one-expert-differs", tmp_path / "one-expert-differs")
    assert first[-1] == ["0", "2", "4@0", "4@1"]


def test_patterns_that_one_stage_has(tmp_path: Path) -> None:
    """Nothing is raised on the other, not even where it has nothing to read, rank 0 included."""
    first, second = run("patterns-of-stages", tmp_path)
    assert first == [[["a", "d"]] * 2, [["d"]] * 2, [["b", "c", "d"]] * 2, [["c", "d"]] * 2]
    assert second == [[]] * 4
    assert [log(tmp_path, rank) for rank in range(2)] == ["", ""]


def test_a_rank_that_closes_during_the_last_step_of_rank_0(tmp_path: Path) -> None:
    """Its last readings are in the last report."""
    reports, _ = run("late-at-the-end", tmp_path)
    assert reports == {step: ["a ok", "b ok", "c ok", "d ok"] for step in ("3", "6")}


def test_patterns_that_no_rank_has(tmp_path: Path) -> None:
    """An error before training on each, with its own names; where not all ranks watch, a warning."""
    for job in ("mistyped", "only-one-watches"):
        (tmp_path / job).mkdir()
    results = run("mistyped", tmp_path / "mistyped")
    for name, messages in zip("ab", results, strict=True):
        assert messages == [
            f"layers='oops*' matches no layer. The layers are: {name}.",
            "no matrix is left to read: left out by exclude=",
        ]
    run("only-one-watches", tmp_path / "only-one-watches")
    assert "continues without what its model lacks: layers='oops' matches no layer" in log(
        tmp_path / "only-one-watches", 0
    )


def test_a_resumed_job_goes_on(tmp_path: Path) -> None:
    """At the steps of one run, on three ranks."""
    steps, *others = run("resumed", tmp_path, size=3)
    assert steps == [4, 8, 12]
    assert others == [[], []]
    assert [log(tmp_path, rank) for rank in range(3)] == ["", "", ""]


def test_a_checkpoint_of_rank_0_waits_for_no_step_of_the_others(tmp_path: Path) -> None:
    """They answer while they wait for it."""
    first, _ = run("checkpointed", tmp_path)
    assert first == [["0", "2", "4"]] * (STEPS // 2)
    assert without_summary(log(tmp_path, 0)) == ""  # a wait for them would end in their being given up


def test_a_job_that_goes_back_reads_all_again(tmp_path: Path) -> None:
    """Each matrix at each step."""
    first, _ = run("rolled-back", tmp_path)
    assert first == [[step, 3] for step in (*range(1, 5), *range(5, 9))]


def test_the_outer_step_of_a_sharded_optimizer_counts(tmp_path: Path) -> None:
    """Once a step, when the weights of all ranks are there."""
    first, second = run("sharded-optimizer", tmp_path)
    assert first["steps"] == second["steps"] == STEPS
    assert first["norms"]["12"] == pytest.approx(first["now"], rel=1e-5)
    assert first["now"] == second["now"]
