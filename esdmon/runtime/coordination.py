"""Share the reading among ranks of a job that hold the same weights; rank 0 decides, gathers and writes.

The ranks exchange messages through the key-value store that every `torch.distributed` job has, and use no collectives.
A collective that one rank does not enter hangs the job: when only rank 0 calls `watch`, when one rank fails to read, or
when the loop is left early. A message that does not come is waited for until a timeout, and then done without. The
store also depends on no backend (NCCL, gloo), and mixes with no collective of the training.
"""

import json
import logging
import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Protocol, final

from esdmon.limits import Limits
from esdmon.records.serialization import layer_from_plain, to_plain
from esdmon.runtime.source import Answer

_POLL = 1e-3
_KEPT = 8  # due steps whose assignment stays in the store

_log = logging.getLogger("esdmon")


class Store(Protocol):
    """A `torch.distributed.Store`."""

    def set(self, key: str, value: str) -> None:
        """Store a text under a key."""

    def get(self, key: str) -> bytes:
        """Return the text under a key."""

    def check(self, keys: list[str]) -> bool:
        """Return whether all keys are there."""

    def delete_key(self, key: str) -> bool:
        """Remove a key."""


@final
class _ClosedStore:
    """An empty store, in the place of one that may be gone."""

    def set(self, key: str, value: str) -> None:
        """Do nothing."""

    def get(self, _key: str) -> bytes:
        """Return an empty text."""
        return b""

    def check(self, _keys: list[str]) -> bool:
        """Return False."""
        return False

    def delete_key(self, _key: str) -> bool:
        """Return False."""
        return False


@final
class Coordinator:
    """The messages of one rank: rank 0 assigns matrices, the others answer with readings.

    Args:
        store: the job's store, with a prefix for this monitor.
        rank: of this process.
        size: of the job.
        timeout: seconds to wait for a message.
    """

    def __init__(self, store: Store, rank: int, size: int, *, timeout: float = Limits().rank_seconds) -> None:
        self._store: Store = store
        self.rank = rank
        self.timeout = timeout
        self.helpers: list[int] = []
        """On rank 0: the ranks that hold the same weights and watch them."""
        self._unknown = list(range(1, size))
        self._fingerprint = ""
        self._assignments: deque[str] = deque()
        self._assigned: dict[int, list[int]] = {}
        self._epoch = 0
        self._rounds = 0

    @property
    def has_joined(self) -> bool:
        """Return whether `join` was called."""
        return bool(self._fingerprint)

    def join(self, fingerprint: str) -> None:
        """Announce at the first due step which weights this rank holds; ranks with the same share the reading."""
        self._fingerprint = fingerprint
        if self.rank > 0:
            self._store.set(f"rank/{self.rank}", fingerprint)

    def restart(self) -> None:
        """Start again from a checkpoint that all ranks load: messages of later steps no longer apply."""
        self._epoch += 1
        self._assignments.clear()
        self._assigned.clear()

    def assign(self, step: int, shares: Mapping[int, Iterable[str]]) -> None:
        """On rank 0: send which rank reads which matrices at this step, and look for ranks that have joined."""
        key = self._key("step", step)
        self._store.set(key, json.dumps({str(rank): list(names) for rank, names in shares.items()}))
        self._assignments.append(key)
        if len(self._assignments) > _KEPT:
            self._store.delete_key(self._assignments.popleft())
        helping = [rank for rank, names in shares.items() if rank > 0 and names]
        if helping:
            self._assigned[step] = helping
        self._look_for_ranks()

    def answered(self, step: int) -> Answer | None:
        """On rank 0: return what the other ranks have read; None until all of them have answered."""
        if not self._store.check([self._key("answer", step, rank) for rank in self._assigned[step]]):
            return None
        return self._take(step, self._assigned.pop(step))

    def give_up(self, step: int) -> Answer:
        """On rank 0: return the answers that have come, and assign no more to ranks that have not answered."""
        ranks = self._assigned.pop(step)
        there = [rank for rank in ranks if self._store.check([self._key("answer", step, rank)])]
        for rank in ranks:
            if rank not in there and rank in self.helpers:
                self.helpers.remove(rank)
                _log.warning("esdmon: rank %d did not answer at step %d; other ranks read its share.", rank, step)
        return self._take(step, there)

    def assigned(self, step: int) -> list[str] | None:
        """On other ranks: return what this rank reads at this step; None where rank 0 has ended, or timed out."""
        key, until = self._key("step", step), time.monotonic() + self.timeout
        while not self._store.check([key]):
            if self._store.check(["end"]):
                return None
            if time.monotonic() > until:
                _log.warning(
                    "esdmon: rank %d: timed out after %g s waiting for rank 0 at step %d; it no longer shares the "
                    "reading. Call watch() on every rank, and load_state_dict() too.",
                    self.rank,
                    self.timeout,
                    step,
                )
                return None
            time.sleep(_POLL)
        shares: dict[str, list[str]] = json.loads(self._store.get(key))
        return shares.get(str(self.rank), [])

    def answer(self, step: int, answer: Answer) -> None:
        """On other ranks: send what was read."""
        plain = {name: [to_plain(layer), seconds] for name, (layer, seconds) in answer.items()}
        self._store.set(self._key("answer", step, self.rank), json.dumps(plain))

    def end(self) -> None:
        """Let the other ranks wait no more, where this is rank 0; and release the store.

        A store that outlives the process group it belongs to can abort the process when the interpreter ends.
        """
        if self.rank == 0:
            self._store.set("end", "")
        self._store = _ClosedStore()

    def _look_for_ranks(self) -> None:
        """Look which ranks have joined: at due steps 1, 2, 4, 8 and so on."""
        self._rounds += 1
        if self._rounds & (self._rounds - 1):
            return
        for rank in [rank for rank in self._unknown if self._store.check([f"rank/{rank}"])]:
            self._unknown.remove(rank)
            if self._store.get(f"rank/{rank}").decode() == self._fingerprint:
                self.helpers.append(rank)
            else:
                _log.warning("esdmon: rank %d holds other weights than rank 0: only those of rank 0 are read.", rank)

    def _take(self, step: int, ranks: Iterable[int]) -> Answer:
        answer: Answer = {}
        for key in (self._key("answer", step, rank) for rank in ranks):
            plain = json.loads(self._store.get(key))
            self._store.delete_key(key)
            answer |= {name: (layer_from_plain(layer), seconds) for name, (layer, seconds) in plain.items()}
        return answer

    def _key(self, *parts: str | int) -> str:
        return "/".join(map(str, (self._epoch, *parts)))
