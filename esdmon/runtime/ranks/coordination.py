"""Exchange messages between the ranks of a job: the weights that each holds, the plans of rank 0, and the readings.

The ranks exchange texts through the key-value store that every `torch.distributed` job has, and use no
collectives. A collective hangs the job if one rank does not enter it: if only rank 0 calls `watch`, if one rank fails
to read, or if one rank leaves the loop early. The store also does not depend on the backend (NCCL, gloo), and does not
interfere with collectives of the training. The training's thread never waits for a message: the plan for a due step is
sent at the due step before, and a rank without a plan reads nothing.
"""

import json
import secrets
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import final

from esdmon.limits import Limits
from esdmon.records.serialization import layer_from_plain, to_plain
from esdmon.runtime.ranks.holdings import Holder, Table
from esdmon.runtime.ranks.job_store import JobStore, Store
from esdmon.runtime.ranks.messages import Answers, Plan, RankNorms, Role
from esdmon.runtime.workers.source import Answer
from esdmon.schedule.fragments import Fragment

_KEPT_PLANS = 8  # due steps whose plan stays in the store, and versions of the holders: ranks may be behind
_LATE = 4  # due steps for which all ranks may be late, and what they send then is still removed; our choice
_ROLES = 3  # roles of a rank that stay in the store, since its plan may be of an earlier version
_AT_ONCE = 2  # old texts that are removed for each new one, so that no step removes many; our choice
_POLL = 0.02  # seconds between two polls for the problems of other ranks


@final
class Coordinator:
    """Send and receive the messages of one rank: rank 0 sends plans, all ranks answer with readings.

    Args:
        store: the job's store, with a prefix for this monitor.
        rank: rank of this process.
        size: number of ranks of the job.
        timeout: seconds after which an answer is given up.
    """

    def __init__(self, store: Store, rank: int, size: int, *, timeout: float = Limits().rank_seconds) -> None:
        self._store = JobStore(store)
        self.rank = rank
        self.size = size
        self._roles: dict[int, deque[list[object]]] = {}
        self.timeout = timeout
        self.epoch = 0
        """Number of times that the monitor has loaded a checkpoint."""
        self._taken = 0
        self._left: tuple[int, ...] = ()
        self._late: deque[str] = deque(maxlen=_LATE * size)
        """Keys of messages that were given up before they arrived."""
        self._holders: deque[tuple[int, str]] = deque()
        """The holders in the store: version and parameter."""
        self._plans: deque[str] = deque()
        self._extra_plans: deque[str] = deque()
        if rank == 0:
            self._store.set("token", secrets.token_hex(32))

    def restart(self) -> None:
        """Discard earlier messages: all ranks have loaded a checkpoint."""
        self.epoch += 1
        self._plans.clear()
        self._extra_plans.clear()

    def token(self) -> bytes | None:
        """Return the key that authenticates the ranks to each other; None until rank 0 watches."""
        return self._store.value("token") if self._store.has("token") else None

    def common(self, problems: Collection[str]) -> set[str] | None:
        """Return the problems of this rank that every rank has. Called before training, if all ranks call `watch`.

        Args:
            problems: keys of the problems of this rank; if there are any, it waits for the other ranks.

        Returns:
            None if not all ranks have called it before the timeout.
        """
        self._store.put(f"problems/{self.rank}", json.dumps(sorted(problems)))
        if not problems:
            return set()
        keys = [f"problems/{rank}" for rank in range(self.size)]
        until = time.monotonic() + self.timeout
        while not self._store.has(*keys):
            if time.monotonic() > until:
                return None
            time.sleep(_POLL)
        return set(problems).intersection(*(json.loads(self._store.text(key)) for key in keys))

    def announce(self, table: Table) -> None:
        """Announce the table of weights that this rank holds; it replaces the previous table."""
        key = f"table/{self.rank}"
        self._store.put(key, table.to_json())
        self._store.set(f"joined/{self._store.add('joined', 1)}", key)

    def has_tables(self) -> bool:
        """On rank 0: return whether tables were announced since the last `take_tables`."""
        return self._store.add("joined", 0) > self._taken

    def take_tables(self) -> Iterator[Table]:
        """On rank 0: yield the tables that were announced since the last call, without those that it has yielded."""
        last = self._store.add("joined", 0)
        while self._taken < last and self._store.has(f"joined/{self._taken + 1}"):
            key = self._store.value(f"joined/{self._taken + 1}").decode()
            table = Table.from_json(self._store.text(key))
            self._taken += 1
            yield table

    def leave(self) -> None:
        """Announce that this rank closes its monitor, and will neither send nor fetch anything."""
        self._store.set(f"left/{self._store.add('left', 1)}", str(self.rank))

    def left(self) -> frozenset[int]:
        """Return the ranks that have closed their monitors. Their earlier messages are in the store."""
        left = self._left  # called concurrently by threads that read and by the training's thread
        for number in range(len(left) + 1, self._store.add("left", 0) + 1):
            if not self._store.has(f"left/{number}"):
                break
            left = (*left, int(self._store.value(f"left/{number}")))
        self._left = left
        return frozenset(left)

    def give_role(self, rank: int, role: Role, version: int) -> None:
        """On rank 0: send a rank its role, which is valid from a version of the holdings on."""
        given = self._roles.setdefault(rank, deque(maxlen=_ROLES))
        given.append([version, dict(role.local), dict(role.copies)])
        self._store.put(f"role/{rank}", json.dumps(list(given)))

    def role(self, version: int) -> Role | None:
        """Return the role of this rank in a version of the holdings; None if rank 0 has sent none by then.

        Rank 0 may be a version ahead of the plan that this rank follows.
        """
        text = self._store.find(f"role/{self.rank}")
        known = [role for since, *role in json.loads(text or "[]") if since <= version]
        if not known:
            return None
        local, copies = known[-1]
        return Role(local, {name: tuple(replicas) for name, replicas in copies.items()})

    def give_holders(self, version: int, parameter: str, holders: Sequence[Holder]) -> None:
        """On rank 0: send which ranks serve the fragments of a parameter; remove those of eight versions before."""
        plain = [[holder.rank, holder.fragment.to_plain(), holder.address] for holder in holders]
        self._store.put(f"holders/{version}/{parameter}", json.dumps(plain))
        self._holders.append((version, parameter))
        for _ in range(_AT_ONCE):
            if self._holders[0][0] <= version - _KEPT_PLANS:
                since, old = self._holders.popleft()
                self._store.delete(f"holders/{since}/{old}")

    def holders(self, version: int, parameter: str) -> tuple[Holder, ...]:
        """Return the ranks that serve the fragments of a parameter."""
        plain = json.loads(self._store.text(f"holders/{version}/{parameter}"))
        return tuple(Holder(rank, Fragment.from_plain(fragment), address) for rank, fragment, address in plain)

    def give_plan(self, previous: int | None, plan: Plan) -> None:
        """On rank 0: send the plan for the due step after `previous`; None means before the first due step."""
        self._say(self._key("plan", str(previous)), plan, self._plans)

    def plan(self, previous: int | None) -> Plan | None:
        """Return the plan for the due step after `previous`; None if rank 0 has sent none."""
        return self._plan(self._key("plan", str(previous)))

    def give_extra_plan(self, step: int, plan: Plan) -> None:
        """On rank 0: send the extra plan of a later step, at which all ranks poll, and return when the store has it."""
        key = self._key("extra", step)
        self._say(key, plan, self._extra_plans)
        self._store.has(key)  # the store answers this request, but not `set`

    def extra_plan(self, step: int) -> Plan | None:
        """Return the extra plan of a step at which all ranks poll; None if rank 0 has sent none."""
        return self._plan(self._key("extra", step))

    def request(self, number: int, kind: str, step: int) -> None:
        """On rank 0: write the request of an alert to the store, and return when the store has it."""
        key = self._key("request", number)
        self._store.set(key, f"{kind} {step}")
        self._store.has(key)  # the store answers this request, but not `set`

    def requested(self, number: int) -> tuple[str, int] | None:
        """Return the kind and the step of the request of this number; None if there are fewer requests."""
        key = self._key("request", number)
        if not self._store.has(key):
            return None
        kind, step = self._store.value(key).decode().split()
        return kind, int(step)

    def answer(self, step: int, answer: Answer, failures: Mapping[int, str], pace: float) -> None:
        """On other ranks: send the readings, the ranks that did not serve their fragments, and the pace of this rank.

        Args:
            step: the step at which the readings were begun.
            answer: the readings.
            failures: reasons by rank.
            pace: seconds of reading per second of this rank's budget.
        """
        plain = {name: [to_plain(layer), seconds] for name, (layer, seconds) in answer.items()}
        self._store.put(self._key("answer", step, self.rank), json.dumps([plain, failures, pace]))

    def has_answers(self, step: int, ranks: Collection[int]) -> bool:
        """On rank 0: return whether the answers of all these ranks have arrived."""
        return not ranks or self._store.has(*(self._key("answer", step, rank) for rank in ranks))

    def take_answers(self, step: int, ranks: Iterable[int]) -> Answers:
        """On rank 0: return the answers that have arrived, and the ranks that have not answered."""
        readings: Answer = {}
        failures: dict[int, dict[int, str]] = {}
        paces: dict[int, float] = {}
        seconds: dict[int, float] = {}
        missing = []
        for rank in ranks:
            key = self._key("answer", step, rank)
            text = self._store.find(key)
            if text is None:
                missing.append(rank)
                continue
            plain, failed, paces[rank] = json.loads(text)
            self._store.delete(key)
            readings |= {name: (layer_from_plain(layer), seconds) for name, (layer, seconds) in plain.items()}
            failures[rank] = {int(other): why for other, why in failed.items()}
            seconds[rank] = sum(taken for _, taken in plain.values())
        self._give_up([self._key("answer", step, rank) for rank in missing])
        return Answers(readings, failures, paces, seconds, tuple(missing))

    def give_norms(self, step: int, norms: RankNorms) -> None:
        """Send the norms that this rank has computed at a due step."""
        self._store.put(self._key("norms", step, self.rank), norms.to_json())

    def take_norms(self, step: int, ranks: Collection[int]) -> dict[int, RankNorms] | None:
        """On rank 0: return the norms that these ranks have sent for a due step; None until all have."""
        keys = {rank: self._key("norms", step, rank) for rank in ranks}
        if not self._store.has(*keys.values()):
            return None
        found = {rank: RankNorms.from_json(self._store.text(key)) for rank, key in keys.items()}
        for key in keys.values():
            self._store.delete(key)
        return found

    def give_up_norms(self, step: int, ranks: Iterable[int]) -> None:
        """On rank 0: remove the norms of these ranks for a due step, also if they arrive later."""
        self._give_up([self._key("norms", step, rank) for rank in ranks])

    def end(self) -> None:
        """Release the store, which is empty from then on."""
        self._store.close()

    def _give_up(self, keys: Sequence[str]) -> None:
        """Remove messages that are not awaited any more, and earlier ones that have arrived since they were given up.

        Only rank 0 removes messages, as it alone reads them: a store would wait for a key that another rank removes
        meanwhile.
        """
        missing = [key for key in keys if not self._remove(key)]
        checked = [self._late.popleft() for _ in range(min(len(self._late), _AT_ONCE * len(missing)))]
        self._late += [key for key in checked if not self._remove(key)] + missing

    def _remove(self, key: str) -> bool:
        """Remove a text; return False if there is none."""
        if not self._store.has(key):
            return False
        self._store.delete(key)
        return True

    def _plan(self, key: str) -> Plan | None:
        text = self._store.find(key)
        return None if text is None else Plan.from_json(text)

    def _say(self, key: str, plan: Plan, said: deque[str]) -> None:
        """Store a plan, and remove the oldest of its kind."""
        self._store.put(key, plan.to_json())
        said.append(key)
        if len(said) > _KEPT_PLANS:
            self._store.delete(said.popleft())

    def _key(self, *parts: str | int) -> str:
        return "/".join(map(str, (self.epoch, *parts)))
