"""Ranks of a job that hold the same weights share the reading of them; rank 0 decides, gathers and writes.

They talk through the key-value store that every `torch.distributed` job has, and not by collectives. A collective
that one rank does not enter hangs the job: when only rank 0 calls `watch`, when one rank fails to read, or when the
loop is left early. A message in the store that does not come is waited for a while, and then done without. It also
asks nothing of the backend (NCCL, gloo), and mixes with no collective of the run's.
"""

import json
import logging
import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Protocol, final

from esdmon.records.serialization import layer_from_plain, to_plain
from esdmon.runtime.executor import Answer

TIMEOUT = 10.0
"""Seconds that a rank waits for the word of rank 0 at a due step, where all ranks of a job are within a step."""
_POLL = 1e-3
_KEPT = 8  # due steps whose word stays in the store

_log = logging.getLogger("esdmon")


class Store(Protocol):
    """What a `torch.distributed.Store` does."""

    def set(self, key: str, value: str) -> None:
        """Put a text."""

    def get(self, key: str) -> bytes:
        """What was put."""

    def check(self, keys: list[str]) -> bool:
        """Whether all are there."""

    def delete_key(self, key: str) -> bool:
        """Take away."""


@final
class _Gone:
    """A store that nobody reads any more."""

    def set(self, key: str, value: str) -> None:
        """Nothing."""

    def get(self, _key: str) -> bytes:
        """Nothing."""
        return b""

    def check(self, _keys: list[str]) -> bool:
        """Nothing is there."""
        return False

    def delete_key(self, _key: str) -> bool:
        """Nothing."""
        return False


@final
class Coordinator:
    """One rank's side of the talk: rank 0 leads, the others help."""

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self._store: Store = store
        self.rank = rank
        self.patience = TIMEOUT
        self.helpers: list[int] = []
        """For rank 0: the ranks that hold the same weights and watch them."""
        self._unknown = list(range(1, size))
        self._fingerprint = ""
        self._words: deque[str] = deque()
        self._asked: dict[int, list[int]] = {}
        self._life = 0
        self._met = 0

    @property
    def has_joined(self) -> bool:
        """Whether `join` was called."""
        return bool(self._fingerprint)

    def join(self, fingerprint: str) -> None:
        """Tell which weights this rank holds, at the first due step; only those with the same help each other."""
        self._fingerprint = fingerprint
        if self.rank > 0:
            self._store.set(f"rank/{self.rank}", fingerprint)

    def restart(self) -> None:
        """Begin anew, from a checkpoint that all ranks load: what was said at steps to come is not meant for them."""
        self._life += 1
        self._words.clear()
        self._asked.clear()

    def assign(self, step: int, shares: Mapping[int, Iterable[str]]) -> None:
        """For rank 0: say who reads what at this step, and see who is new."""
        word = self._word("step", step)
        self._store.set(word, json.dumps({str(rank): list(names) for rank, names in shares.items()}))
        self._words.append(word)
        if len(self._words) > _KEPT:
            self._store.delete_key(self._words.popleft())
        asked = [rank for rank, names in shares.items() if rank > 0 and names]
        if asked:
            self._asked[step] = asked
        self._meet()

    def answered(self, step: int) -> Answer | None:
        """For rank 0: what all that were asked have read; None until the last has answered."""
        if not self._store.check([self._word("answer", step, rank) for rank in self._asked[step]]):
            return None
        return self._take(step, self._asked.pop(step))

    def give_up(self, step: int) -> Answer:
        """For rank 0: what has come; who has not answered is not asked again."""
        ranks = self._asked.pop(step)
        there = [rank for rank in ranks if self._store.check([self._word("answer", step, rank)])]
        for rank in ranks:
            if rank not in there and rank in self.helpers:
                self.helpers.remove(rank)
                _log.warning("esdmon: rank %d did not answer at step %d; its share is read by the others.", rank, step)
        return self._take(step, there)

    def assigned(self, step: int) -> list[str] | None:
        """For the others: what this rank is to read at this step; None where rank 0 has ended, or says nothing."""
        word, until = self._word("step", step), time.monotonic() + self.patience
        while not self._store.check([word]):
            if self._store.check(["end"]):
                return None
            if time.monotonic() > until:
                _log.warning(
                    "esdmon: rank %d had no word from rank 0 at step %d within %.0f s and stops reading: is watch() "
                    "called on every rank, and load_state_dict() too?",
                    self.rank,
                    step,
                    self.patience,
                )
                return None
            time.sleep(_POLL)
        shares: dict[str, list[str]] = json.loads(self._store.get(word))
        return shares.get(str(self.rank), [])

    def answer(self, step: int, answer: Answer) -> None:
        """For the others: give what was read."""
        plain = {name: [to_plain(layer), seconds] for name, (layer, seconds) in answer.items()}
        self._store.set(self._word("answer", step, self.rank), json.dumps(plain))

    def end(self) -> None:
        """Let the others wait no more, where this is rank 0; and let go of the store.

        A store that outlives the process group it belongs to can abort the process when the interpreter ends.
        """
        if self.rank == 0:
            self._store.set("end", "")
        self._store = _Gone()

    def _meet(self) -> None:
        """Look who is new, ever more rarely: at due steps 1, 2, 4, 8 and so on."""
        self._met += 1
        if self._met & (self._met - 1):
            return
        for rank in [rank for rank in self._unknown if self._store.check([f"rank/{rank}"])]:
            self._unknown.remove(rank)
            if self._store.get(f"rank/{rank}").decode() == self._fingerprint:
                self.helpers.append(rank)
            else:
                _log.warning("esdmon: rank %d holds other weights than rank 0, which reads its own only.", rank)

    def _take(self, step: int, ranks: Iterable[int]) -> Answer:
        answer: Answer = {}
        for word in (self._word("answer", step, rank) for rank in ranks):
            plain = json.loads(self._store.get(word))
            self._store.delete_key(word)
            answer |= {name: (layer_from_plain(layer), seconds) for name, (layer, seconds) in plain.items()}
        return answer

    def _word(self, *parts: str | int) -> str:
        return "/".join(map(str, (self._life, *parts)))
