"""What alerts ask of a loop of the user's own: all ranks of a job stop, and save, at the same step."""

import json
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import esdmon
from esdmon.runtime.ranks.coordination import Coordinator
from esdmon.runtime.ranks.messages import Role
from esdmon.runtime.ranks.requests import Requests
from tests.ranks import results_in, start

EVERY, BREAKS, MOST = 3, 7, 40

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:multiprocessing")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 64))


def shards() -> Any:
    model = network()
    for layer in (model[0], model[2]):
        fully_shard(layer)
    sharded: Any = fully_shard(model)
    return sharded


WAYS: dict[str, Callable[[], nn.Module]] = {"ddp": lambda: DistributedDataParallel(network()), "fsdp2": shards}


def train(way: str, rank: int, slow: int) -> dict[str, Any]:
    """Train until the monitor says stop, with a loss that is infinite from one step on; one rank is slower."""
    model = WAYS[way]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    options: dict[str, Any] = {"stop_on": ["non_finite"], "save_on": ["non_finite"], "sinks": None}
    wait = np.random.default_rng(rank)
    saves = []
    with esdmon.watch(model, optimizer, every=EVERY, budget=None, **options) as monitor:
        for step in range(1, MOST + 1):
            loss = model(torch.ones(2, 64)).square().mean() * (1.0 if step < BREAKS else float("inf"))
            optimizer.zero_grad()
            loss.backward()
            time.sleep(wait.random() / 50 * (rank == slow))
            optimizer.step()
            time.sleep(wait.random() / 50 * (rank == slow))
            if monitor.take_save_request():
                distributed.barrier()  # a checkpoint of sharded weights is a collective
                saves.append(step)
            if monitor.should_stop:
                break
        return {"stopped": step, "saves": saves, "errors": [fault.message for fault in monitor.errors]}


def rank_of_a_job(rank: int, folder: str, size: int) -> None:
    timeout = timedelta(seconds=30)  # of a rank that goes on where another has stopped
    store = f"file://{folder}/store"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=size, timeout=timeout)
    torch.set_num_threads(1)
    results = {f"{way}, {slow} is slow": train(way, rank, slow) for way in WAYS for slow in range(size)}
    Path(f"{folder}/result-{rank}.json").write_text(json.dumps(results))
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_all_ranks_stop_and_save_at_the_same_step(size: int, tmp_path: Path) -> None:
    """At a due step after the one with the finding, whichever rank is slow; none is left in a collective."""
    start(rank_of_a_job, str(tmp_path), size, ranks=size)
    first, *others = results_in(tmp_path, size)
    assert all(other == first for other in others)
    for name, result in first.items():
        assert result["errors"] == [], name
        assert result["stopped"] % EVERY == 0, name
        assert BREAKS + EVERY <= result["stopped"] < MOST, (name, result)
        assert result["saves"] == [result["stopped"]], (name, result)


class Store:
    """A store in memory, in which a key that is not there is no wait."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    def set(self, key: str, value: str | bytes) -> None:
        self.values[key] = value.encode() if isinstance(value, str) else value

    def get(self, key: str) -> bytes:
        return self.values[key]

    def add(self, _key: str, _amount: int) -> int:
        raise NotImplementedError

    def check(self, keys: list[str]) -> bool:
        return all(key in self.values for key in keys)

    def delete_key(self, key: str) -> bool:
        return self.values.pop(key, None) is not None


@pytest.mark.parametrize("seed", range(20))
def test_whoever_is_ahead(seed: int) -> None:
    """Rank 0 may be a step ahead or behind: both ranks take up each request once, at the same due step."""
    chance, store = np.random.default_rng(seed), Store()
    ranks = [Coordinator(store, rank, 2) for rank in (0, 1)]
    requests = [Requests(each) for each in ranks]
    asked = {int(step): bool(chance.integers(2)) for step in chance.choice(range(1, 40), 6, replace=False)}
    seen: list[list[tuple[int, bool]]] = [[], []]
    for step in range(1, 60):
        for rank in chance.permutation(2):  # the next step begins when both have left this one
            if rank == 0 and step in asked:
                requests[0].add("stop" if asked[step] else "save")
            requests[rank].exchange(step, is_due=step % EVERY == 0)
            if requests[rank].take_save_request() or requests[rank].should_stop:
                seen[rank].append((step, requests[rank].should_stop))
    assert seen[0] == seen[1] != []
    assert all(step % EVERY == 0 and step > min(asked) for step, stops in seen[0] if not stops)
    stop = min((step for step, stops in asked.items() if stops), default=None)
    if stop is not None:
        assert next(step for step, stops in seen[0] if stops) == stop + EVERY - stop % EVERY


def test_requests_of_a_run_that_went_back() -> None:
    """What was left in the store before all ranks went back to a checkpoint is forgotten by all."""
    store = Store()
    ranks = [Coordinator(store, rank, 2) for rank in (0, 1)]
    requests = [Requests(each) for each in ranks]
    requests[0].add("save")
    requests[0].exchange(5, is_due=False)
    for rank in ranks:
        rank.restart()
    for step in (3, 6, 9):
        for each in requests:
            each.exchange(step, is_due=True)
    assert [each.take_save_request() for each in requests] == [False, False]
    requests[0].add("save")
    requests[0].exchange(10, is_due=False)
    for each in requests:
        each.exchange(12, is_due=True)
    assert [each.take_save_request() for each in requests] == [True, True]


def test_a_rank_has_the_role_of_the_word_that_it_follows() -> None:
    """Rank 0 may have joined more tables by then, and have others give what this rank still has to give."""
    store = Store()
    leader, other = Coordinator(store, 0, 2), Coordinator(store, 1, 2)
    assert other.role(1) is None
    early, late = Role({"a": "b"}, {"x": (), "y": (2, 3)}), Role({}, {"x": (2,)})
    leader.give_role(1, early, 1)
    leader.give_role(1, late, 3)
    assert [other.role(version) for version in (0, 1, 2, 3, 4)] == [None, early, early, late, late]
