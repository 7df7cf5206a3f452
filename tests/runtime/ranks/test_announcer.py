"""A rank whose fragments the others cannot fetch, since it could not listen for them, tries again."""

import socket
import threading
from typing import Any

import pytest

from esdmon.limits import Limits
from esdmon.records import Coverage
from esdmon.runtime.ranks.announcer import Announcer
from esdmon.runtime.ranks.coordination import Coordinator
from esdmon.runtime.ranks.holdings import Listed, Part
from esdmon.schedule.fragments import Fragment
from tests.benchmarks.sharded_scale import CountingStore
from tests.descriptors import without_descriptors


class Source:
    """A model with half of one parameter; it never changes."""

    coverage = Coverage(0, 0)

    @property
    def parts(self) -> "Source":
        return self

    def refresh(self) -> bool:
        return False

    def holdings(self) -> Any:
        return {"fc": Listed(1.0, ("fc.weight",))}, {"fc.weight": Part((2, 4), 4, Fragment((0, 0), (1, 4)), "", 0)}


class Threads:
    """An executor that reads in threads."""

    on_the_spot = False
    pauses = True


class Job:
    """Two ranks, of which the second has a fragment."""

    def __init__(self) -> None:
        store = CountingStore()
        self.leader = Coordinator(store, 0, 2)
        ranks: Any = Coordinator(store, 1, 2)
        source: Any = Source()
        executor: Any = Threads()
        self.announcer = Announcer(source, executor, ranks, Limits(longest_pause=4))

    def announced(self) -> list[tuple[bool, bool]]:
        """Return for each new table whether it has an address, and whether it has the fragment."""
        return [(bool(each.address), bool(each.parameters["fc.weight"].fragment)) for each in self.leader.take_tables()]


def test_a_rank_without_a_descriptor_for_a_moment_announces_its_fragments_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The loader of the training's data may have all of them: the fragments were not read in the rest of the run."""
    job = Job()
    with without_descriptors():
        assert not job.announcer.refresh()
    assert job.announced() == [(False, False)]
    assert not job.announcer.refresh()
    assert job.announced() == [(True, True)]
    job.announcer.refresh()
    assert job.announced() == []
    assert job.announcer.exchange is not None
    job.announcer.exchange.close()
    assert [record.message.partition(":")[2][:40] for record in caplog.records] == [
        " rank 1 cannot listen for the other rank",
        " rank 1 listens for the other ranks now.",
    ]


def test_a_rank_that_may_start_no_thread_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A control group may limit them. The port that nobody would answer is closed."""
    job = Job()
    made: list[socket.socket] = []
    listen = socket.create_server

    def create(*args: Any, **named: Any) -> socket.socket:
        made.append(listen(*args, **named))
        return made[-1]

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(socket, "create_server", create)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        job.announcer.refresh()
    assert job.announced() == [(False, False)]
    job.announcer.refresh()
    assert job.announced() == [(True, True)]
    assert [each.fileno() == -1 for each in made] == [True, False]
    assert job.announcer.exchange is not None
    job.announcer.exchange.close()


def test_a_rank_that_cannot_listen_tries_less_and_less_often(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Looking up its address may take time. It is one line in the log."""
    steps: list[int] = []
    tried = []

    def refuse(*_: object, **__: object) -> socket.socket:
        tried.append(steps[-1])
        raise OSError(99, "Cannot assign requested address")

    monkeypatch.setattr(socket, "create_server", refuse)
    job = Job()
    for step in range(1, 21):
        steps.append(step)
        job.announcer.refresh()
    assert tried == [1, 2, 4, 8, 12, 16, 20]
    assert job.announced() == [(False, False)]
    assert len(caplog.records) == 1
