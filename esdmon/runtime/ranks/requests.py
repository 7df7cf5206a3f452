"""Define `Requests`: the requests of alerts to stop or to save, known on all ranks of a job at the same step."""

from typing import Literal, TypeAlias, final

from esdmon.runtime.ranks.coordination import Coordinator

Kind: TypeAlias = Literal["stop", "save"]


@final
class Requests:
    """The requests of alerts to the training loop, to stop and to save a checkpoint.

    In a single process a request applies at once. In a job only rank 0 has the alerts, and a rank that stops or saves
    alone would hang the others in their next collective. So rank 0 writes each request, with its step s, to the job's
    store, and every rank checks the store at due steps only. A request applies from the first due step d after s. At s
    itself only some ranks may see it. At d all ranks see it without waiting: a rank reaches the hook of d only after it
    has computed the gradients of that step together with rank 0, which has left the hook of s by then.

    Args:
        ranks: exchanges messages with other ranks; None for a single process, and if a host passes requests on.
    """

    def __init__(self, ranks: Coordinator | None = None) -> None:
        self._ranks = ranks
        self._asked: list[Kind] = []
        self._epoch = self._n_sent = self._n_taken = 0
        self._should_save = False
        self.should_stop = False
        """True if a rule has requested a stop."""

    @property
    def is_shared(self) -> bool:
        """Return whether `exchange` has to be called at each step."""
        return self._ranks is not None

    def add(self, kind: Kind) -> None:
        """Add the request of an alert."""
        if self._ranks is None:
            self._grant(kind)
        elif kind not in self._asked:
            self._asked.append(kind)

    def take_save_request(self) -> bool:
        """Return whether an alert since the last call requests a checkpoint."""
        requested, self._should_save = self._should_save, False
        return requested

    def exchange(self, step: int, *, is_due: bool) -> None:
        """Send new requests, and at a due step apply the requests of earlier steps."""
        if self._ranks is None:
            return
        if self._epoch != self._ranks.epoch:  # all ranks have loaded a checkpoint
            self._epoch, self._n_sent, self._n_taken = self._ranks.epoch, 0, 0
        while self._asked:
            self._ranks.request(self._n_sent, self._asked[0], step)
            self._n_sent += 1
            self._asked.pop(0)
        while is_due and (found := self._ranks.requested(self._n_taken)) is not None:
            kind, since = found
            if since >= step:
                return
            self._n_taken += 1
            self._grant("stop" if kind == "stop" else "save")

    def _grant(self, kind: Kind) -> None:
        self.should_stop |= kind == "stop"
        self._should_save |= kind == "save"
