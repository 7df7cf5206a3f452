"""Readings of sharded weights between the scheduled steps: what an alert waits for, and what jumps."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from esdmon.limits import Limits
from esdmon.options import WatchOptions
from esdmon.runtime.ranks.coordination import Coordinator
from esdmon.sinks import MemorySink
from esdmon.watching import attach
from tests.ranks import results_of
from tests.runtime.ranks.collectives import no_collective
from tests.runtime.ranks.sharded_jobs import difference, reading_of

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning:multiprocessing")]

EVERY, GAP = 20, 2  # steps between scheduled readings, and between polls
FAULTS = {"collapse": 47, "missed": 47, "rate": 67}  # the first step of each
SHORT = Limits(rank_seconds=0.5, fragment_seconds=0.2, close_seconds=8.0)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 64), nn.Tanh(), nn.Linear(64, 64))


def cut(weight: Tensor, step: int) -> None:
    """Leave 40 directions of a weight."""
    generator = torch.Generator().manual_seed(step)
    whole = torch.randn(weight.shape[0], 40, generator=generator) @ torch.randn(40, 64, generator=generator) / 50
    assert isinstance(weight, DTensor)
    with torch.no_grad():
        weight.copy_(distribute_tensor(whole, weight.device_mesh, weight.placements))


def train(case: str, *, watched: bool = True) -> dict[str, Any]:
    """The losses, and of a watched model what was read, and how that differs from the whole model's readings."""
    rank, sink = distributed.get_rank(), MemorySink()
    model: Any = network()
    for layer in (model[0], model[2], model[4]):
        fully_shard(layer)
    fully_shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    options = WatchOptions.from_keywords({"every": EVERY, "budget": None, "sinks": [sink]}, besides=())
    limits = SHORT if case == "missed" else None
    monitor = attach(model, None, options, limits=limits) if watched else None
    losses, states, counts, polls = [], {}, 0, []
    asked = Coordinator.extra_plan
    with pytest.MonkeyPatch.context() as patch:

        def noted(ranks: Coordinator, step: int) -> Any:
            polls.append(step)
            return None if case == "missed" else asked(ranks, step)

        patch.setattr(Coordinator, "extra_plan", noted)
        for step in range(1, FAULTS[case] + 34):
            inputs = torch.randn(16, 64, generator=torch.Generator().manual_seed(2 * step + rank))
            loss = (model(inputs) - inputs).square().mean()
            optimizer.zero_grad()
            loss.backward()
            is_faulty = step >= FAULTS[case]
            if is_faulty and case == "rate":
                optimizer.param_groups[0]["lr"] = 1.0
            optimizer.step()
            if is_faulty and case != "rate":
                cut(model[0].weight, step)
            losses.append(loss.item())
            if monitor is not None:
                with no_collective() as counted:
                    monitor.step()
                counts += counted.get_total_counts()
                states[step] = {name: weight.full_tensor().detach() for name, weight in model.named_parameters()}
                monitor.flush(10)  # so that what is read at a step is known before the next
                distributed.barrier()
    if monitor is None:
        return {"losses": losses}
    monitor.close()
    read = [layer for report in sink.reports if report.extra for layer in report.new]
    whole = {step: reading_of(network(), states[step]) for step in {layer.step for layer in read}}
    return {
        "losses": losses,
        "collectives": counts,
        "errors": [fault.message for fault in monitor.errors],
        "polls": polls,
        "scheduled": [[report.step, len(report.new)] for report in sink.reports if not report.extra],
        "extra": [[layer.step, layer.name, layer.status, difference(layer, whole[layer.step])] for layer in read],
        "alerts": [[alert.rule, alert.layer, alert.state, alert.step] for alert in monitor.alerts],
        "sampled": [layer.step_ratio for layer in sink.reports[-1].layers] if sink.reports else [],
    }


def rank_of_a_job(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    results = {case: train(case) | {"plain": train(case, watched=False)["losses"]} for case in ("collapse", "rate")}
    results["missed"] = train("missed")
    Path(f"{folder}/result-{rank}.json").write_text(json.dumps(results))
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return results_of(rank_of_a_job, tmp_path_factory.mktemp("job"), ranks=2)


def test_a_finding_is_confirmed_before_the_next_scheduled_step(results: list[dict[str, Any]]) -> None:
    """The layer with the finding is read at the polls that follow, with the values of the whole matrix."""
    result = results[0]["collapse"]
    assert [(name, status, differing) for _, name, status, differing in result["extra"]] == [("0", "ok", [])] * 2
    ((rule, layer, state, step),) = result["alerts"]
    assert (rule, layer, state) == ("rank_collapse", "0", "firing")
    assert 3 * EVERY < step < 4 * EVERY
    assert result["scheduled"] == [[step, 3] for step in range(EVERY, 4 * EVERY + 1, EVERY)]


def test_a_jump_brings_readings_forward(results: list[dict[str, Any]]) -> None:
    """Rank 0 samples steps of its own fragments; what these show stands in the records of all ranks' readings."""
    result = results[0]["rate"]
    assert {name for _, name, _, _ in result["extra"]} == {"0", "2", "4"}
    assert all(status == "ok" and not differing for _, _, status, differing in result["extra"])
    assert all(FAULTS["rate"] < step < 4 * EVERY for step, *_ in result["extra"])
    assert all(ratio > 0 for ratio in result["sampled"])


def test_it_leaves_no_trace_in_the_training(results: list[dict[str, Any]]) -> None:
    """Losses are the same to the last bit, and no collective is entered."""
    for result in (rank[case] for rank in results for case in ("collapse", "rate")):
        assert result["losses"] == result["plain"]
        assert (result["collectives"], result["errors"]) == (0, [])


def test_ranks_look_nine_times_between_scheduled_steps(results: list[dict[str, Any]]) -> None:
    """Once the distance of scheduled steps is known; rank 0 knows without looking."""
    expected = [step for step in range(2 * EVERY, 4 * EVERY, GAP) if step % EVERY]
    assert (results[0]["collapse"]["polls"], results[1]["collapse"]["polls"]) == ([], expected)


def test_a_rank_that_misses_the_word_copies_nothing(results: list[dict[str, Any]]) -> None:
    """The scheduled readings are all there, and the last readings stay; rank 0 counts it."""
    first, second = (rank["missed"] for rank in results)
    assert first["extra"] == []
    assert first["scheduled"] == results[0]["collapse"]["scheduled"]
    assert first["errors"] == ["TimeoutError: not all ranks have read or sent their part of 0"]
    assert second["errors"] == []
    assert [first["losses"], second["losses"]] == [rank["collapse"]["losses"] for rank in results]
