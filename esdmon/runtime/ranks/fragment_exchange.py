"""Define `FragmentExchange`, which serves copies of this rank's fragments to other ranks over TCP, and fetches theirs.

Each copy is fetched by the rank that assembles the matrix, in a thread, with a deadline. So connections fail
independently: if a rank is late, silent or dead, the others only lose waiting time in this thread. docs/sharded.md
shows by measurements why torch's own means are not used: a `TCPStore` whose process is stopped blocks its clients for
ever, and a pair of gloo that has timed out once is closed for good.

A request is authenticated by a key that rank 0 writes to the job's store. Received data is never unpickled.
"""

import hashlib
import hmac
import socket
import struct
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from threading import BoundedSemaphore, Condition, Thread
from typing import TypeAlias, final

from esdmon.runtime.ranks.own_address import own_address

_MOST_REQUEST = 4096  # bytes of a key
_MAC = hashlib.sha256().digest_size
_LENGTH = struct.Struct("!I")
_WAIT = struct.Struct("!d")  # seconds
_HEAD = struct.Struct("!qdd")  # bytes that follow, or −length of an error message; the fields of `Moved`
_PIECE = 1 << 20  # bytes that must be sent within the patience
_POLL = 0.02  # seconds between two checks which ranks have closed, and until a failed accept is tried again
_AT_ONCE = 16  # requests that are answered concurrently; others wait. Our choice.


@dataclass(frozen=True, slots=True)
class Moved:
    """The move of a fragment since it was last copied, estimated from a sample: ‖ΔW‖², and ‖W‖² before."""

    change: float
    norm: float


FragmentCopy: TypeAlias = tuple[Callable[[], memoryview], Callable[[], Moved]]
"""A copy of this rank's own fragment of a parameter, and the move of that fragment."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """A copy, or the reason why there is none."""

    copy: FragmentCopy | None
    owner: int
    """The rank that fetches the copy."""
    since: float
    size: int = 0
    error: str = ""


class PeerError(Exception):
    """Raised if a rank does not serve its fragment.

    Args:
        rank: number of the rank.
        reason: what happened.
        answers: True if the rank has sent this reason; False if it cannot be reached, or does not answer.
    """

    def __init__(self, rank: int, reason: str, *, answers: bool = False) -> None:
        super().__init__(reason)
        self.rank = rank
        self.answers = answers


@final
@dataclass(slots=True)
class FragmentExchange:
    """Serve copies of this rank's fragments, until they are fetched or too old, and fetch fragments of other ranks.

    Args:
        token: the key that authenticates ranks of the job.
        most_bytes: largest size of all kept copies; a single larger copy is kept if there is no other.
        patience: seconds that a request waits for a copy, and for the other rank.
    """

    token: bytes
    most_bytes: int
    patience: float
    kept_bytes: int = 0
    peak_bytes: int = 0
    """The largest number of bytes that were kept at any time."""
    _kept: dict[str, _Kept] = field(default_factory=dict)
    _changed: Condition = field(default_factory=Condition)
    _server: socket.socket | None = None
    _is_closed: bool = False
    _busy: BoundedSemaphore = field(default_factory=lambda: BoundedSemaphore(_AT_ONCE))

    def open(self) -> str:
        """Listen on the job's interface, and return the address as `host port`.

        Raises:
            OSError: if the interface has no such address, or the process has no free file descriptor.
            RuntimeError: if no thread can be started.
        """
        host = own_address()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        server = socket.create_server((host, 0), family=family)
        try:
            Thread(target=self._accept, args=(server,), name="esdmon-fragments", daemon=True).start()
        except RuntimeError:
            server.close()
            raise
        self._server = server
        return f"{host} {server.getsockname()[1]}"

    def keep(self, key: str, copy: FragmentCopy, size: int, *, owner: int) -> None:
        """Keep a copy of `size` bytes until the rank `owner` fetches it."""
        with self._changed:
            if self._kept and self.kept_bytes + size > self.most_bytes:
                self.fail(key, "has no memory for it: copies for earlier readings have not been fetched", owner=owner)
                return
            self._kept[key] = _Kept(copy, owner, time.monotonic(), size)
            self.kept_bytes += size
            self.peak_bytes = max(self.peak_bytes, self.kept_bytes)
            self._changed.notify_all()

    def fail(self, key: str, why: str, *, owner: int) -> None:
        """Store the reason why there is no copy, so that no rank waits for it."""
        with self._changed:
            self._kept[key] = _Kept(None, owner, time.monotonic(), error=why)
            self._changed.notify_all()

    def take(self, key: str, until: float) -> tuple[memoryview, Moved]:
        """Return a copy and remove it; wait for it until a time of the monotonic clock.

        Raises:
            LookupError: if there is no copy, with the reason.
        """
        with self._changed:
            self._changed.wait_for(lambda: key in self._kept, max(0.0, until - time.monotonic()))
            kept = self._kept.pop(key, None)
            if kept is not None:
                self.kept_bytes -= kept.size
            self._changed.notify_all()
        if kept is None or kept.copy is None:
            raise LookupError("has no copy of this step" if kept is None else kept.error)
        read, moved = kept.copy
        return read(), moved()

    @property
    def n_kept(self) -> int:
        """Return the number of copies that are kept."""
        return len(self._kept)

    def expire(self, before: float) -> None:
        """Remove copies that were stored before a time of the monotonic clock, which no rank will fetch any more."""
        with self._changed:
            for key in [key for key, kept in self._kept.items() if kept.since < before]:
                self.kept_bytes -= self._kept.pop(key).size

    def drain(self, timeout: float, left: Callable[[], Collection[int]]) -> None:
        """Wait until all copies are fetched, or until the timeout.

        Args:
            timeout: largest number of seconds to wait.
            left: returns the ranks that have closed, and fetch no more copies.
        """
        until = time.monotonic() + timeout
        while (owners := self._owners()) and not owners <= set(left()) and time.monotonic() < until:
            with self._changed:
                self._changed.wait_for(lambda: not self._owners(), _POLL)
        for _ in range(_AT_ONCE):  # also waits until requests in progress are answered
            self._busy.acquire(timeout=max(0.0, until - time.monotonic()))

    def _owners(self) -> set[int]:
        """Return the ranks that have not fetched all of their copies."""
        with self._changed:
            return {kept.owner for kept in self._kept.values() if kept.copy}

    def close(self) -> None:
        """Stop listening, and remove all copies."""
        self._is_closed = True
        if self._server is not None:
            with suppress(OSError):
                self._server.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
            self._server.close()
        with self._changed:
            self._kept.clear()
            self.kept_bytes = 0

    def _accept(self, server: socket.socket) -> None:
        while not self._is_closed:
            try:
                self._accept_one(server)
            except (OSError, RuntimeError):  # closed; or the process may open no file, or start no thread, for now
                time.sleep(_POLL)

    def _accept_one(self, server: socket.socket) -> None:
        link, _ = server.accept()
        if not self._busy.acquire(timeout=self.patience):
            link.close()
            return
        try:
            Thread(target=self._answer, args=(link,), name="esdmon-fragment", daemon=True).start()
        except RuntimeError:
            self._busy.release()
            link.close()
            raise

    def _answer(self, link: socket.socket) -> None:
        try:
            with link, suppress(OSError):  # the requesting rank has disconnected
                link.settimeout(self.patience)
                key = self._read_request(link)
                if key is not None:
                    self._send(link, *key)
        finally:
            self._busy.release()

    def _read_request(self, link: socket.socket) -> tuple[str, float] | None:
        """Return the requested key and the seconds to wait for it; None if the sender is not a rank of this job."""
        (length,) = _LENGTH.unpack(_receive(link, bytearray(_LENGTH.size)))
        if not _MAC + _WAIT.size < length <= _MAC + _MOST_REQUEST:
            return None
        request = bytes(_receive(link, bytearray(length)))
        mac, key = request[:_MAC], request[_MAC:]
        if not hmac.compare_digest(mac, self._sign(key)):
            return None
        return key[_WAIT.size :].decode(), min(self.patience, *_WAIT.unpack(key[: _WAIT.size]))

    def _send(self, link: socket.socket, key: str, wait: float) -> None:
        try:
            copy, moved = self.take(key, time.monotonic() + wait)
        except Exception as error:  # noqa: BLE001 -- the reason is the answer
            why = str(error).encode()
            link.sendall(_HEAD.pack(-len(why), 0, 0) + why)
            return
        link.sendall(_HEAD.pack(copy.nbytes, moved.change, moved.norm))
        for start in range(0, copy.nbytes, _PIECE):  # the timeout applies to each call
            link.sendall(copy[start : start + _PIECE])

    def _sign(self, key: bytes) -> bytes:
        return hmac.new(self.token, key, hashlib.sha256).digest()

    def fetch(self, rank: int, address: str, key: str, into: memoryview, *, until: float) -> Moved:
        """Fetch a copy from another rank into memory of its size.

        Args:
            rank: number of that rank, for messages.
            address: the result of its `open`.
            key: key of the copy.
            into: buffer to write to.
            until: deadline on the monotonic clock for the start of the transfer; the transfer itself may end later, but
                pauses in it are limited.

        Raises:
            PeerError: if the copy is not served.
        """
        host, port = address.rsplit(" ", 1)
        try:
            # Longer than the other rank waits for its copy, so that it can answer that it has none.
            left = max(0.0, until - time.monotonic()) + self.patience / 4
            with socket.create_connection((host, int(port)), timeout=left) as link:
                asked = _WAIT.pack(max(0.0, until - time.monotonic())) + key.encode()
                request = self._sign(asked) + asked
                link.sendall(_LENGTH.pack(len(request)) + request)
                size, change, norm = _HEAD.unpack(_receive(link, bytearray(_HEAD.size)))
                link.settimeout(self.patience)
                if size < 0:
                    why = bytes(_receive(link, bytearray(min(-size, _MOST_REQUEST)))).decode(errors="replace")
                    raise PeerError(rank, f"rank {rank} {why}", answers=True)
                if size != into.nbytes:
                    raise PeerError(rank, f"rank {rank} sent {size} bytes, expected {into.nbytes}", answers=True)
                _receive(link, into)
        except TimeoutError as error:
            raise PeerError(rank, f"rank {rank} did not answer in time") from error
        except OSError as error:
            raise PeerError(rank, f"rank {rank} cannot be reached: {error.strerror or error}") from error
        return Moved(change, norm)


def _receive(link: socket.socket, into: memoryview | bytearray) -> memoryview | bytearray:
    """Fill a buffer.

    Raises:
        OSError: if the other side closes the connection before.
    """
    view = memoryview(into).cast("B")
    while len(view):
        count = link.recv_into(view)
        if not count:
            raise ConnectionResetError("the connection was closed")
        view = view[count:]
    return into
