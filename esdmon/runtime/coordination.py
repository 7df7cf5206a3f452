"""The messages between the ranks of a job: who holds what, what is read where, and the readings.

The ranks exchange words and numbers through the key-value store that every `torch.distributed` job has, and use no
collectives. A collective that one rank does not enter hangs the job: when only rank 0 calls `watch`, when one rank
fails to read, or when the loop is left early. The store also depends on no backend (NCCL, gloo), and mixes with no
collective of the training. Nobody waits for a message in the training's thread: what is read at a due step was
announced at the due step before, and whoever has no word reads nothing.
"""

import json
import secrets
import time
import zlib
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, final

from esdmon.limits import Limits
from esdmon.records.serialization import layer_from_plain, to_plain
from esdmon.runtime.holdings import Holder, Table
from esdmon.runtime.source import Answer
from esdmon.schedule.fragments import Fragment

_KEPT = 8  # due steps whose word stays in the store, and versions of the holders: ranks may be behind
_ROLES = 3  # of a rank that stay in the store: it follows a word of a version before the newest
_POLL = 0.02  # seconds between looks for the problems of other ranks
_PIECE = 1 << 20  # bytes of a value; a store closes the connection at one of more than 8 MiB


class Store(Protocol):
    """A `torch.distributed.Store`."""

    def set(self, key: str, value: str | bytes) -> None:
        """Store a value under a key."""

    def get(self, key: str) -> bytes:
        """Return the value under a key."""

    def add(self, key: str, amount: int) -> int:
        """Add to a counter, and return it."""

    def check(self, keys: list[str]) -> bool:
        """Return whether all keys are there."""

    def delete_key(self, key: str) -> bool:
        """Remove a key."""


@final
class _ClosedStore:
    """An empty store, in the place of one that may be gone."""

    def set(self, key: str, value: str | bytes) -> None:
        """Do nothing."""

    def get(self, _key: str) -> bytes:
        """Return an empty value."""
        return b""

    def add(self, _key: str, _amount: int) -> int:
        """Return 0."""
        return 0

    def check(self, _keys: list[str]) -> bool:
        """Return False."""
        return False

    def delete_key(self, _key: str) -> bool:
        """Return False."""
        return False


@dataclass(frozen=True, slots=True)
class Job:
    """What one rank reads at a due step: matrices that share their parameters, by their names in the job."""

    owner: int
    names: tuple[str, ...]
    parameters: tuple[str, ...] = ()
    """The sharded parameters that it puts together; none where it holds all of the matrix."""


@dataclass(frozen=True, slots=True)
class Word:
    """What is read at a due step."""

    version: int
    """Of the holdings; a rank that knows another one looks up its role first."""
    jobs: tuple[Job, ...]
    looks: tuple[int, ...] = ()
    """After how many steps of the due one all ranks look whether more is read there, until the next due step."""
    ending: int = 0
    """In how many blocks of steps readings end, before steps without any are measured; 0 where no rank stands still."""

    def to_json(self) -> str:
        """Return the word as JSON."""
        jobs = [[job.owner, job.names, job.parameters] for job in self.jobs]
        return json.dumps([self.version, jobs, self.looks, self.ending])

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the word that `to_json` was called on."""
        version, plain, looks, ending = json.loads(text)
        jobs = tuple(Job(owner, tuple(names), tuple(behind)) for owner, names, behind in plain)
        return cls(version, jobs, tuple(looks), ending)


@dataclass(frozen=True, slots=True)
class Answers:
    """What other ranks have answered."""

    readings: Answer
    failures: Mapping[int, Mapping[int, str]]
    """By rank, those that did not give it their fragments, and why."""
    paces: Mapping[int, float]
    """By rank, its seconds of reading for each second of its budget."""
    seconds: Mapping[int, float]
    """By rank, what its readings have taken."""
    missing: tuple[int, ...]
    """Ranks that have not answered."""


@dataclass(frozen=True, slots=True)
class Role:
    """What a rank needs to know to act on words."""

    local: Mapping[str, str]
    """Its own names by those in the job, of those that differ."""
    copies: frozenset[str]
    """The parameters, by their names in the job, of which it gives its fragment."""


@final
class Coordinator:
    """The messages of one rank: rank 0 says what is read, all ranks answer with readings.

    Args:
        store: the job's store, with a prefix for this monitor.
        rank: of this process.
        size: of the job.
        timeout: seconds after which an answer is given up.
    """

    def __init__(self, store: Store, rank: int, size: int, *, timeout: float = Limits().rank_seconds) -> None:
        self._store: Store = store
        self.rank = rank
        self.size = size
        self._roles: dict[int, deque[list[object]]] = {}
        self.timeout = timeout
        self._epoch = 0
        self._taken = 0
        self._words: deque[str] = deque()
        self._asked: deque[str] = deque()
        if rank == 0:
            store.set("token", secrets.token_hex(32))

    @property
    def epoch(self) -> int:
        """Return how often the monitor has gone back to a checkpoint."""
        return self._epoch

    def restart(self) -> None:
        """Start again from a checkpoint that all ranks load: messages of later steps no longer apply."""
        self._epoch += 1
        self._words.clear()
        self._asked.clear()

    def token(self) -> bytes | None:
        """Return the key by which ranks know each other; None until rank 0 watches."""
        return self._store.get("token") if self._store.check(["token"]) else None

    def common(self, problems: Collection[str], timeout: float) -> set[str] | None:
        """Return those of this rank's problems that every rank has: before training, where all of them call `watch`.

        Args:
            problems: what they are about.
            timeout: seconds to wait for the others, where there are any.

        Returns:
            None where not all ranks have called it in that time.
        """
        self._put(f"problems/{self.rank}", json.dumps(sorted(problems)))
        if not problems:
            return set()
        keys = [f"problems/{rank}" for rank in range(self.size)]
        until = time.monotonic() + timeout
        while not self._store.check(keys):
            if time.monotonic() > until:
                return None
            time.sleep(_POLL)
        return set(problems).intersection(*(json.loads(self._get(key)) for key in keys))

    def announce(self, table: Table) -> None:
        """Announce what this rank holds; the last table counts."""
        key = f"table/{self.rank}"
        self._put(key, table.to_json())
        self._store.set(f"joined/{self._store.add('joined', 1)}", key)

    def has_tables(self) -> bool:
        """On rank 0: return whether tables were announced since the last `take_tables`."""
        return self._store.add("joined", 0) > self._taken

    def take_tables(self) -> list[Table]:
        """On rank 0: return the tables that were announced since the last call."""
        tables = []
        last = self._store.add("joined", 0)
        while self._taken < last and self._store.check([f"joined/{self._taken + 1}"]):
            self._taken += 1
            key = self._store.get(f"joined/{self._taken}").decode()
            tables.append(Table.from_json(self._get(key)))
        return tables

    def give_role(self, rank: int, role: Role, version: int) -> None:
        """On rank 0: say what a rank needs to know to act on words, from a version of the holdings on."""
        given = self._roles.setdefault(rank, deque(maxlen=_ROLES))
        given.append([version, dict(role.local), sorted(role.copies)])
        self._put(f"role/{rank}", json.dumps(list(given)))

    def role(self, version: int) -> Role | None:
        """Return the role of this rank in a version of the holdings; None where rank 0 had given it none by then.

        Rank 0 may be a version ahead of the word that this rank follows.
        """
        key = f"role/{self.rank}"
        if not self._store.check([key]):
            return None
        known = [role for since, *role in json.loads(self._get(key)) if since <= version]
        if not known:
            return None
        local, copies = known[-1]
        return Role(local, frozenset(copies))

    def give_holders(self, version: int, parameter: str, holders: Sequence[Holder]) -> None:
        """On rank 0: say who gives the fragments of a parameter; what was said eight versions ago is forgotten."""
        plain = [[holder.rank, holder.fragment.to_plain(), holder.address] for holder in holders]
        self._put(f"holders/{version}/{parameter}", json.dumps(plain))
        before = f"holders/{version - _KEPT}/{parameter}"
        if self._store.check([before]):
            self._delete(before)

    def holders(self, version: int, parameter: str) -> tuple[Holder, ...]:
        """Return who gives the fragments of a parameter."""
        plain = json.loads(self._get(f"holders/{version}/{parameter}"))
        return tuple(Holder(rank, Fragment.from_plain(fragment), address) for rank, fragment, address in plain)

    def assign(self, previous: int | None, word: Word) -> None:
        """On rank 0: send at a due step what is read at the next one; before the first, `previous` is None."""
        self._say(self._key("word", str(previous)), word, self._words)

    def word(self, previous: int | None) -> Word | None:
        """Return what is read at the due step after `previous`; None where rank 0 has not said it."""
        key = self._key("word", str(previous))
        return Word.from_json(self._get(key)) if self._store.check([key]) else None

    def ask(self, step: int, word: Word) -> None:
        """On rank 0: send what is read at the look of a later step, and return when the store has it."""
        key = self._key("asked", step)
        self._say(key, word, self._asked)
        self._store.check([key])  # a store answers this, and not `set`

    def asked(self, step: int) -> Word | None:
        """Return what is read at the look of a step; None where rank 0 has asked for nothing."""
        key = self._key("asked", step)
        return Word.from_json(self._get(key)) if self._store.check([key]) else None

    def request(self, number: int, kind: str, step: int) -> None:
        """On rank 0: leave the request of an alert, and return when the store has it."""
        key = self._key("request", number)
        self._store.set(key, f"{kind} {step}")
        self._store.check([key])  # a store answers this, and not `set`

    def requested(self, number: int) -> tuple[str, int] | None:
        """Return a request and its step; None where there are not so many."""
        key = self._key("request", number)
        if not self._store.check([key]):
            return None
        kind, step = self._store.get(key).decode().split()
        return kind, int(step)

    def answer(self, step: int, answer: Answer, failures: Mapping[int, str], pace: float) -> None:
        """On other ranks: send what was read, which ranks did not give their fragments, and how fast this rank reads.

        Args:
            step: at which it was begun.
            answer: what was read.
            failures: reasons by rank.
            pace: seconds of reading for each second of this rank's budget.
        """
        plain = {name: [to_plain(layer), seconds] for name, (layer, seconds) in answer.items()}
        self._put(self._key("answer", step, self.rank), json.dumps([plain, failures, pace]))

    def answered(self, step: int, ranks: Iterable[int]) -> list[int]:
        """On rank 0: return those ranks whose answer has come."""
        ranks = list(ranks)
        if ranks and self._store.check([self._key("answer", step, rank) for rank in ranks]):
            return ranks
        return []

    def take_answers(self, step: int, ranks: Iterable[int]) -> Answers:
        """On rank 0: return the answers that are there, and who has not answered."""
        readings: Answer = {}
        failures: dict[int, dict[int, str]] = {}
        paces: dict[int, float] = {}
        seconds: dict[int, float] = {}
        missing = []
        for rank in ranks:
            key = self._key("answer", step, rank)
            if not self._store.check([key]):
                missing.append(rank)
                continue
            plain, failed, paces[rank] = json.loads(self._get(key))
            self._delete(key)
            readings |= {name: (layer_from_plain(layer), seconds) for name, (layer, seconds) in plain.items()}
            failures[rank] = {int(other): why for other, why in failed.items()}
            seconds[rank] = sum(taken for _, taken in plain.values())
        return Answers(readings, failures, paces, seconds, tuple(missing))

    def end(self) -> None:
        """Release the store.

        A store that outlives the process group it belongs to can abort the process when the interpreter ends.
        """
        self._store = _ClosedStore()

    def _say(self, key: str, word: Word, said: deque[str]) -> None:
        """Store a word, and remove the oldest of its kind."""
        self._put(key, word.to_json())
        said.append(key)
        if len(said) > _KEPT:
            self._delete(said.popleft())

    def _key(self, *parts: str | int) -> str:
        return "/".join(map(str, (self._epoch, *parts)))

    def _put(self, key: str, text: str) -> None:
        """Store a text of any length: compressed, in pieces, and last their number."""
        packed = zlib.compress(text.encode(), 1)
        pieces = range(0, len(packed), _PIECE)
        for number, start in enumerate(pieces):
            self._store.set(f"{key}/{number}", packed[start : start + _PIECE])
        self._store.set(key, str(len(pieces)))

    def _get(self, key: str) -> str:
        if not self._store.check([key]):  # a store waits for a key that is not there
            raise LookupError(f"{key} is not in the job's store")
        count = int(self._store.get(key))
        return zlib.decompress(b"".join(self._store.get(f"{key}/{number}") for number in range(count))).decode()

    def _delete(self, key: str) -> None:
        for number in range(int(self._store.get(key))):
            self._store.delete_key(f"{key}/{number}")
        self._store.delete_key(key)
