"""Jobs of several ranks on one machine, by gloo."""

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

import esdmon
from esdmon import watching
from esdmon.limits import Limits
from esdmon.replay import records
from esdmon.runtime.reading.reader import Reader
from esdmon.sinks import MemorySink
from tests.ranks import results_in, start
from tests.summaries import without_summary

STEPS = 12

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:multiprocessing")


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 80), nn.Tanh(), nn.Linear(80, 64))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int, steps: int = STEPS) -> list[Tensor]:
    torch.manual_seed(seed)
    losses = []
    for _ in range(steps):
        loss = model(torch.randn(4, 64)).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


def rank_of_a_job(rank: int, job: str, folder: str, size: int) -> None:
    """One rank: its own log, and what the job's function returns as its result."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    logging.basicConfig(filename=f"{folder}/log-{rank}")
    torch.set_num_threads(1)
    result = JOBS[job](rank, Path(folder))
    Path(f"{folder}/result-{rank}.json").write_text(json.dumps(result))
    distributed.barrier()  # a rank whose peer is gone aborts
    distributed.destroy_process_group()


def run(job: str, folder: Path, size: int = 2) -> list[Any]:
    start(rank_of_a_job, job, str(folder), size, ranks=size)
    return results_in(folder, size)


def log(folder: Path, rank: int) -> str:
    return (folder / f"log-{rank}").read_text()


def shared(rank: int, folder: Path, **options: Any) -> dict[str, Any]:
    """DDP, watched by the same line everywhere; which matrices were read here, and the losses."""
    model = DistributedDataParallel(network(rank))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sinks = f"jsonl:{folder}/rank-{rank}.jsonl"
    monitor = esdmon.watch(model, optimizer, every=3, budget=None, sinks=sinks, **options)
    with counted_readings() as read, monitor:
        losses = train(model, optimizer, rank)
    return {"read": read, "losses": [float(loss) for loss in losses], "errors": len(monitor.errors)}


@contextmanager
def counted_readings() -> Iterator[list[tuple[int, str]]]:
    """Which matrices this rank reads meanwhile, and at which steps."""
    begin = Reader.begin
    read: list[tuple[int, str]] = []

    def counted(reader: Reader, name: str, step: int, **options: Any) -> Any:
        read.append((step, name))
        return begin(reader, name, step, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reader, "begin", counted)
        yield read


def unwatched(rank: int, _folder: Path) -> list[float]:
    model = DistributedDataParallel(network(rank))
    return [float(loss) for loss in train(model, torch.optim.SGD(model.parameters(), lr=0.01), rank)]


def only_on_rank_0(rank: int, _folder: Path) -> list[int]:
    """As many scripts do what concerns output."""
    model = DistributedDataParallel(network(rank))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sink = MemorySink()
    monitor = esdmon.watch(model, optimizer, every=3, budget=None, sinks=[sink]) if rank == 0 else None
    train(model, optimizer, rank)
    if monitor is not None:
        monitor.close()
    return [len(report.new) for report in sink.reports]


def not_on_rank_0(rank: int, _folder: Path) -> list[tuple[int, str]]:
    """The others find no word, and wait for none; what they read."""
    model = DistributedDataParallel(network(rank))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with counted_readings() as read:
        monitor = esdmon.watch(model, optimizer, every=1, sinks=None) if rank else None
        train(model, optimizer, rank)
        if monitor is not None:
            monitor.close()
            assert monitor.errors == ()
    return read


def one_fails(rank: int, _folder: Path) -> dict[str, Any]:
    """A rank whose readings raise: rank 0 has its word for it, and the others' numbers."""
    model = DistributedDataParallel(network(rank))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sink = MemorySink()

    def broken(*_args: object, **_options: object) -> None:
        raise RuntimeError("on this rank")

    with pytest.MonkeyPatch.context() as patch:
        if rank:
            patch.setattr("esdmon.runtime.reading.computing.read_spectrum", broken)
        with esdmon.watch(model, optimizer, every=3, budget=None, sinks=[sink]):
            train(model, optimizer, rank)
    return {str(report.step): {layer.name: layer.status for layer in report.new} for report in sink.reports}


def one_dies(rank: int, _folder: Path) -> list[list[str]]:
    """A rank that stops answering: its readings are lost and logged, and rank 0 reads its share after three times."""
    vars(watching)["Limits"] = partial(Limits, rank_seconds=0.05)
    model = network(0)
    sink = MemorySink()
    monitor = esdmon.watch(model, every=1, budget=None, sinks=[sink])
    for step in range(STEPS):
        if rank == 0 or step < 3:
            monitor.step()
        time.sleep(0.1)
        distributed.barrier()
    monitor.close(timeout=0.2)
    return [[layer.name for layer in report.new] for report in sink.reports]


def read_in_turn(model: nn.Module) -> list[list[str]]:
    """Return what each report of four steps has, where no rank is ahead of another."""
    sink = MemorySink()
    with esdmon.watch(model, every=1, budget=None, sinks=[sink]) as monitor:
        for _ in range(4):
            monitor.step()
            distributed.barrier()
    return [[layer.name for layer in report.new] for report in sink.reports]


def different(rank: int, _folder: Path) -> list[list[str]]:
    """Ranks that train models of their own."""
    return read_in_turn(network(rank))


def resumed(rank: int, _folder: Path) -> list[int]:
    """Rank 0's state, loaded on all ranks."""
    steps: list[int] = []
    state: list[Any] = [None]
    for _ in range(2):
        model = DistributedDataParallel(network(0))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        sink = MemorySink()
        with esdmon.watch(model, optimizer, every=4, budget=None, sinks=[sink]) as monitor:
            if state[0] is not None:
                monitor.load_state_dict(state[0])
            train(model, optimizer, rank, steps=6)
            state = [monitor.state_dict() if rank == 0 else None]
        distributed.broadcast_object_list(state)
        steps += [report.step for report in sink.reports]
    return steps


def checkpointed(rank: int, _folder: Path) -> list[list[str]]:
    """Rank 0 saves, as everyone does, while the others wait in the next step."""
    model = DistributedDataParallel(network(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sink = MemorySink()
    with esdmon.watch(model, optimizer, every=2, budget=None, mode="thread", sinks=[sink]) as monitor:
        for step in range(STEPS):
            train(model, optimizer, rank + 10 * step, steps=1)
            if rank == 0:
                monitor.state_dict()
            time.sleep(0.05)  # else more due steps are under way than may be
    return [[layer.name for layer in report.new] for report in sink.reports]


def rolled_back(rank: int, _folder: Path) -> list[list[int]]:
    """A job that goes back to a checkpoint without a new start: messages of those steps do not apply."""
    model = DistributedDataParallel(network(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sink = MemorySink()
    with esdmon.watch(model, optimizer, every=1, budget=None, sinks=[sink]) as monitor:
        train(model, optimizer, rank, steps=4)
        state = [monitor.state_dict()]
        distributed.broadcast_object_list(state)
        train(model, optimizer, rank, steps=4)
        monitor.load_state_dict(state[0])
        train(model, optimizer, rank, steps=4)
    assert monitor.errors == ()
    return [[report.step, len(report.new)] for report in sink.reports]


def stage(*names: str, **options: Any) -> list[list[str]]:
    """Two stages of a pipeline, of which each has the layers that its rank names."""
    model = nn.ModuleDict({name: nn.Linear(64, 48) for name in names})
    sink = MemorySink()
    with esdmon.watch(model, every=3, budget=None, sinks=[sink], **options) as monitor:
        for _ in range(2 * 3):
            distributed.barrier()
            monitor.step()
    assert monitor.errors == ()
    return [[layer.name for layer in report.new] for report in sink.reports]


def patterns_of_stages(rank: int, _folder: Path) -> list[list[list[str]]]:
    """Patterns that one stage has and the other has not, and a stage without any matrix."""
    own = ("c", "d") if rank else ("a", "b")
    return [
        stage(*own, layers=["a", "d"]),
        stage(*own, layers=["d"]),
        stage(*own, exclude=["a"]),
        stage(*(own if rank else ())),
    ]


def late_at_the_end(rank: int, _folder: Path) -> dict[str, list[str]]:
    """Rank 1 has closed its monitor when rank 0 is in its last step, at which half of the matrices are due."""
    model = nn.ModuleDict({name: nn.Linear(64, 48) for name in ("ab", "cd")[rank]})
    sink = MemorySink()
    with esdmon.watch(model, every=3, budget=None, sinks=[sink]) as monitor:
        for step in range(1, 7):
            distributed.barrier()
            time.sleep(0.5 * (rank == 0 and step == 6))
            monitor.step()
    return {str(report.step): [f"{layer.name} {layer.status}" for layer in report.new] for report in sink.reports}


def mistyped(rank: int, _folder: Path) -> list[str]:
    """A pattern that no rank has is an error on each, as are patterns that leave nothing anywhere."""
    messages = []
    for options in ({"layers": ["a", "oops*"]}, {"exclude": ["*"]}):
        try:
            stage("ab"[rank], **options)
        except esdmon.errors.InputError as error:
            messages.append(str(error))
        distributed.barrier()
    return messages


def only_one_watches(rank: int, _folder: Path) -> list[str]:
    """A pattern that rank 0 has not, and the other does not watch: it goes on, and logs it."""
    vars(watching)["Limits"] = partial(Limits, rank_seconds=0.05)
    if rank == 0:
        with esdmon.watch(network(0), every=1, budget=None, sinks=None, layers=["0", "oops"]) as monitor:
            monitor.step()
    distributed.barrier()
    return []


def one_expert_differs(rank: int, _folder: Path) -> list[list[str]]:
    """Most weights are the same on all ranks; one is each rank's own."""
    model = network(0)
    with torch.no_grad():
        model.get_parameter("4.weight").add_(rank)
    return read_in_turn(model)


def sharded_optimizer(rank: int, _folder: Path) -> dict[str, Any]:
    """ZeroRedundancyOptimizer: the weights are the same on all ranks after its outer step, and not after its inner."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model = DistributedDataParallel(network(0))
    optimizer = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=torch.optim.SGD, lr=0.01)
    sink = MemorySink()
    with esdmon.watch(model, optimizer, every=3, budget=None, sinks=[sink], strict=True) as monitor:
        train(model, optimizer, rank)
    norms = {report.step: report["4"].measures["frobenius_norm"] for report in sink.reports}
    return {"steps": monitor.steps, "norms": norms, "now": float(model.module[4].weight.norm())}


JOBS: dict[str, Callable[[int, Path], Any]] = {
    "shared": shared,
    "shared-thread": lambda rank, folder: shared(rank, folder, mode="thread"),
    "unwatched": unwatched,
    "only-on-rank-0": only_on_rank_0,
    "not-on-rank-0": not_on_rank_0,
    "one-fails": one_fails,
    "one-dies": one_dies,
    "different": different,
    "resumed": resumed,
    "checkpointed": checkpointed,
    "rolled-back": rolled_back,
    "one-expert-differs": one_expert_differs,
    "sharded-optimizer": sharded_optimizer,
    "patterns-of-stages": patterns_of_stages,
    "mistyped": mistyped,
    "late-at-the-end": late_at_the_end,
    "only-one-watches": only_one_watches,
}


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
    assert "goes on without what its model lacks: layers='oops' matches no layer" in log(
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
