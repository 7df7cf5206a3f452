"""Norms between readings of matrices that rank 0 does not hold: of sharded ones, and of those of other ranks."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, linalg, nn

import esdmon
from esdmon.records import Screened
from esdmon.runtime.pipeline import screening
from esdmon.runtime.ranks.coordination import Coordinator
from esdmon.runtime.ranks.holdings import Entry, Holder, Holdings
from esdmon.runtime.ranks.messages import Plan
from esdmon.runtime.ranks.norms import JobNorms, OwnNorms
from esdmon.runtime.ranks.parts import Squares
from esdmon.schedule import priority
from esdmon.schedule.budget import Budget
from esdmon.schedule.fragments import Fragment
from esdmon.sinks import MemorySink
from esdmon.weights import Matrix, discover
from tests.benchmarks.sharded_scale import CountingStore
from tests.clocks import FakeClock
from tests.limits import set_limits
from tests.ranks import results_of
from tests.runtime.ranks.collectives import no_collective
from tests.runtime.ranks.sharded_jobs import gather
from tests.runtime.ranks.sharded_ways import made

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:multiprocessing")
STEPS = 16
FUSED = {f"attention.in_proj_weight/{part}" for part in "qkv"}
MIXED = {"conv", "attention.out_proj", "first", "tied", "experts.down_proj"} | FUSED
SCREENED = {
    "fsdp2": MIXED,
    "fsdp2, bfloat16": {"0", "2", "4"},
    "fsdp1": MIXED,
    "fsdp1, flat": MIXED,
    "tensor parallel": {"0", "2"},
    "tensor parallel, two blocks": {"first", "second"},
}
"""By way, the matrices that are one sharded parameter, or a part of one."""


def rank_of_a_job(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        screen_much(patch)
        result = {way: train(way) for way in SCREENED}
    Path(f"{folder}/result-{rank}.json").write_text(json.dumps(result))
    distributed.barrier()
    distributed.destroy_process_group()


def screen_much(patch: pytest.MonkeyPatch) -> None:
    """Let little be read at a due step, and all else be screened."""
    set_limits(patch, advance_seconds=0.0)
    patch.setattr(screening, "SHARE", 1e9)
    patch.setattr(screening, "WORTH", 0)
    patch.setattr(priority, "RARE", 0)
    patch.setattr(priority, "TOLERANCE", 0.0)


def train(way: str) -> dict[str, Any]:
    """A few steps: the norms that are found, each with that of the gathered weight; errors, and collectives."""
    whole, model = made(way)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    parameters = dict(model.named_parameters())
    generator = torch.Generator().manual_seed(0)
    matrices = {matrix.name: matrix for matrix in discover(whole).matrices}
    sink, norms, collectives = MemorySink(), {}, 0
    monitor = esdmon.watch(model, hook=False, every=1, budget=1e-9, sinks=sink)
    for step in range(1, STEPS + 1):
        model(whole.batch(generator)).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        with no_collective() as counted:
            monitor.step()
        collectives += counted.get_total_counts()
        gather(whole, parameters, model)
        norms[step] = {name: norm_of(matrix) for name, matrix in matrices.items()}
        distributed.barrier()
    monitor.close()
    found = [each for report in sink.reports for each in report.screened if each.is_new]
    return {
        "errors": [fault.message for fault in monitor.errors],
        "collectives": collectives,
        "found": [
            [each.name, each.frobenius_norm, norms[each.step][each.name]]
            for each in found
            if math.isnan(each.spectral_norm)
        ],
    }


def norm_of(matrix: Matrix) -> float:
    return float(matrix.to_stack(matrix.read().detach()).double().norm())


def test_norms_of_sharded_weights_are_those_of_the_gathered_ones(tmp_path: Path) -> None:
    """Without a collective, whatever shards them: rows, columns, or intervals of what was flattened."""
    first, second = results_of(rank_of_a_job, tmp_path, ranks=2)
    found = {way: {name for name, *_ in result["found"]} for way, result in first.items()}
    for way, result in first.items():
        assert (result["errors"], result["collectives"]) == ([], 0), way
        assert found[way] <= SCREENED[way], way
        assert len(found[way]) > 1, way
        for name, norm, expected in result["found"]:
            assert norm == pytest.approx(expected, rel=1e-6), (way, name)
    # Of a matrix that is read at the next step no report has the norm: not each way finds all.
    assert found["fsdp2"] | found["fsdp1"] | found["fsdp1, flat"] == MIXED
    assert all(not result["found"] and not result["errors"] for result in second.values())


def stage_of_a_pipeline(rank: int, folder: str) -> None:
    """Train one stage: layers of its own, and one that each stage has under the same name."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    first, second = nn.Linear(96, 64), nn.Linear(64, 64)
    model = nn.ModuleDict({f"stage{rank}": first, "fc": second})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sink = MemorySink()
    true: dict[tuple[str, int], list[float]] = {}
    with pytest.MonkeyPatch.context() as patch:
        screen_much(patch)
        monitor = esdmon.watch(model, hook=False, every=1, budget=1e-9, sinks=sink)
        for step in range(1, 2 * STEPS + 1):
            second(first(torch.randn(8, 96))).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            monitor.step()
            layers = {f"stage{rank}": first, f"fc@{rank}": second}
            stages: list[Any] = [None, None]
            own = {name: linalg.svdvals(layer.weight.detach()).tolist() for name, layer in layers.items()}
            distributed.all_gather_object(stages, own)
            true |= {(name, step): values for stage in stages for name, values in stage.items()}
        monitor.close()
    found = [each for report in sink.reports for each in report.screened if each.is_new]
    result = {
        "errors": [fault.message for fault in monitor.errors],
        "found": [
            [each.name, each.N, each.frobenius_norm, each.spectral_norm, each.residual, true[each.name, each.step]]
            for each in found
        ],
    }
    Path(f"{folder}/result-{rank}.json").write_text(json.dumps(result))
    distributed.barrier()
    distributed.destroy_process_group()


def test_matrices_of_other_stages_are_screened_with_their_largest_singular_value(tmp_path: Path) -> None:
    """Also where stages have equal names for different weights, of which rank 0 has one."""
    first, second = results_of(stage_of_a_pipeline, tmp_path, ranks=2)
    assert first["errors"] == second["errors"] == second["found"] == []
    found = {name for name, *_ in first["found"]}  # no report has the norm of a matrix that is read at the next step
    assert found <= {"stage0", "stage1", "fc@0", "fc@1"}
    assert found & {"stage0", "fc@0"}
    assert found & {"stage1", "fc@1"}
    for name, n, norm, sigma, residual, sigmas in first["found"]:
        assert n == (96 if name.startswith("stage") else 64)
        assert norm == pytest.approx(math.hypot(*sigmas), rel=1e-5), name
        assert 0.8 * max(sigmas) < sigma <= max(sigmas) * (1 + 1e-5), name
        assert min(abs((each / sigma) ** 2 - 1) for each in sigmas) <= residual + 1e-5, name


class Source:
    """Fragments and whole matrices whose norms arrive when they are given."""

    def __init__(self, clock: FakeClock, **squares: float) -> None:
        self.clock = clock
        self.squares_of = squares
        self.norms_of: dict[str, float] = {}
        self.has_arrived = True
        self.begun: list[Screened] = []

    @property
    def parts(self) -> "Source":
        return self

    def squares(self, names: Iterable[str]) -> tuple[Squares, float]:
        found = {name: self.squares_of[name] for name in names if name in self.squares_of}
        return lambda: found if self.has_arrived else None, 0.25

    def has(self, name: str) -> bool:
        return name != "own_gone"

    def screen(self, name: str, step: int) -> float | None:
        assert self.has(name)
        self.clock.passes(2.0)
        if name not in self.norms_of:
            return None
        self.begun.append(Screened(name, step, self.norms_of[name], 2.0, 0.01, N=40))
        return 0.5

    def screened(self) -> list[Screened]:
        found, self.begun = (self.begun, []) if self.has_arrived else ([], self.begun)
        return found


class Job:
    """Two ranks that hold halves of two matrices; rank 1 has other names for them, and U and T for itself."""

    def __init__(self) -> None:
        clock = FakeClock()
        self.store = store = CountingStore()
        budget = Budget(0.01, clock=clock.perf_counter, cpu_clock=lambda: 0.0)
        self.ranks = [Coordinator(store, rank, 2) for rank in range(2)]
        self.sources = [Source(clock, V=9.0, W=1.0), Source(clock, own_V=7.0, own_W=3.0)]
        self.sources[1].norms_of = {"own_U": 5.0, "own_T": 6.0}
        pairs: Any = zip(self.sources, self.ranks, strict=True)
        self.own = [OwnNorms(source, ranks, budget) for source, ranks in pairs]
        self.norms = JobNorms(self.ranks[0])
        holders = tuple(Holder(rank, Fragment((rank, 0), (1, 2)), "") for rank in range(2))
        entries = {name: Entry(1.0, (name.lower(),), (0, 1), side=side) for name, side in (("V", 20), ("W", 30))}
        entries |= {name: Entry(1.0, (), (1,), side=40) for name in "TU"}
        self.holdings = Holdings(entries, {"v": holders, "w": holders})

    def plan(self, step: int, names: str = "VW") -> tuple[tuple[str, str | int], ...]:
        planned = self.norms.plan(names, self.holdings)
        assert set(self.norms.begin(step)) == set(names)
        return planned

    def compute(self, rank: int, step: int, whole: str = "") -> float:
        parts = {f"own_{name}" if rank else name: name for name in "VW"}
        return self.own[rank].compute(step, parts, {f"own_{name}": name for name in whole})

    def take(self) -> list[Screened]:
        return [each for screening in self.norms.take() for each in screening.found]


def test_norms_are_known_when_all_ranks_have_sent_theirs() -> None:
    job = Job()
    assert job.plan(5) == (("V", "v"), ("W", "w"))
    assert job.compute(0, 5) == 0.25
    assert job.norms.take() == []
    job.compute(1, 5)
    found = job.take()
    assert [(each.name, each.step, each.frobenius_norm, each.N) for each in found] == [
        ("V", 5, 4.0, 20),
        ("W", 5, 2.0, 30),
    ]
    assert all(math.isnan(each.spectral_norm) and math.isnan(each.residual) for each in found)
    assert job.norms.take() == []
    assert job.norms.begin(6) == {}


def test_a_matrix_of_another_rank_is_screened_there() -> None:
    """With its λmax, and under its name in the job; the job waits for the slowest rank."""
    job = Job()
    assert job.plan(5, "VWU") == (("V", "v"), ("W", "w"), ("U", 1))
    job.compute(0, 5)
    job.sources[1].has_arrived = False
    assert job.compute(1, 5, "U") == 0.75  # on its accelerator
    assert job.norms.take() == []
    job.sources[1].has_arrived = True
    job.own[1].send()
    (screening,) = job.norms.take()
    assert set(screening.names) == {"V", "W", "U"}
    assert (screening.seconds, screening.own) == pytest.approx((2.75, 0.25), rel=1e-4)
    found = {each.name: each for each in screening.found}
    assert found["U"] == Screened("U", 5, 5.0, 2.0, 0.01, N=40)
    assert (found["V"].frobenius_norm, found["W"].frobenius_norm) == (4.0, 2.0)


def test_a_matrix_that_its_rank_cannot_screen_has_no_norms() -> None:
    """As one on a device without float64, or one that is not in the model any more; the others are not held up."""
    job = Job()
    del job.sources[1].norms_of["own_U"]
    job.plan(5, "TU")
    assert job.own[1].compute(5, {}, {"own_T": "T", "own_U": "U", "own_gone": "gone"}) == 0.75
    (screening,) = job.norms.take()
    assert set(screening.names) == {"T", "U"}
    assert [each.name for each in screening.found] == ["T"]
    assert (screening.seconds, screening.own) == pytest.approx((4.75, 0.0), rel=1e-4)


def test_replicas_are_screened_by_different_ranks() -> None:
    """Each matrix by the same rank each time."""
    names = [f"blocks.{number}.fc" for number in range(64)]
    holdings = Holdings({name: Entry(1.0, (), (1, 3), side=40) for name in names})
    norms = JobNorms(Coordinator(CountingStore(), 0, 4))
    first, second = (dict(norms.plan(names, holdings)) for _ in range(2))
    assert first == second
    assert min(list(first.values()).count(rank) for rank in (1, 3)) > 20


def test_what_arrives_late_from_a_device_is_sent_later() -> None:
    """In the order of the steps, and with the step at which it was computed."""
    job = Job()
    job.sources[1].has_arrived = False
    for step in (5, 6):
        job.plan(step)
        job.compute(0, step)
        job.compute(1, step)
    assert job.norms.take() == []
    job.sources[1].has_arrived = True
    job.own[1].send()
    assert [each.step for each in job.take()] == [5, 5, 6, 6]


def test_a_rank_that_does_not_send_is_waited_for_three_due_steps() -> None:
    job = Job()
    for step in range(1, 5):
        job.plan(step)
        job.compute(0, step)
    for step in range(1, 5):
        job.compute(1, step)
    assert [each.step for each in job.take()] == [2, 2, 3, 3, 4, 4]


@pytest.mark.parametrize("late", [0, 5])
def test_norms_that_are_no_longer_awaited_do_not_stay_in_the_store(late: int) -> None:
    """Neither those of the ranks that have sent theirs in time, nor those that a rank sends due steps later."""
    job = Job()
    n_keys = []
    for step in range(1, 41):
        job.plan(step)
        job.compute(0, step)
        if late and step > late:
            job.own[1].compute(step - late, {"own_V": "V", "own_W": "W"}, {})
        assert job.take() == []
        n_keys.append(len(job.store.values))
    assert max(n_keys) == max(n_keys[:10])


@pytest.mark.parametrize(("square", "norm"), [(math.nan, math.nan), (math.inf, math.inf)])
def test_a_part_that_is_not_finite_or_cannot_be_read(square: float, norm: float) -> None:
    """The norm of a weight is not finite where one of its parts is not; without one of its parts it has none."""
    job = Job()
    job.sources[1].squares_of = {"own_V": square}
    job.plan(5)
    job.compute(0, 5)
    job.compute(1, 5)
    (found,) = job.take()
    assert found.name == "V"
    assert found.frobenius_norm == pytest.approx(norm, nan_ok=True)


def test_a_checkpoint_forgets_what_was_under_way() -> None:
    """The weights are others now."""
    job = Job()
    job.sources[1].has_arrived = False
    job.plan(5)
    job.compute(0, 5)
    job.compute(1, 5)
    for own in job.own:
        own.forget()
    job.norms.forget()
    job.sources[1].has_arrived = True
    job.own[1].send()
    assert job.norms.take() == []


def test_a_plan_says_whose_norms_are_computed() -> None:
    plan = Plan(3, (), (50, 100), 2, (("V", "v"), ("W", 1)))
    assert Plan.from_json(plan.to_json()) == plan


def test_only_the_norm_of_a_sharded_weight_is_in_records() -> None:
    found = Screened("V", 5, 4.0, math.nan, math.nan, N=20)
    record = found.to_record()
    assert record == {
        "step": 5,
        "name": "V",
        "N": 20,
        "frobenius_norm": 4.0,
        **dict.fromkeys(("spectral_norm", "lambda_max", "stable_rank", "residual")),
    }
    assert found.measures == {"frobenius_norm": 4.0}
    back = Screened.from_record(json.loads(json.dumps(record)))
    assert (back.name, back.step, back.frobenius_norm, back.N) == ("V", 5, 4.0, 20)
    assert math.isnan(back.spectral_norm)
    assert back.to_record() == record
