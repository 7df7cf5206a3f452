"""Define `JobStore`: the key-value store of a `torch.distributed` job, for values and for texts of any length."""

import zlib
from typing import Protocol, final

_PIECE = 1 << 20  # bytes of a value; a store closes the connection for values above 8 MiB


class Store(Protocol):
    """A `torch.distributed.Store`."""

    def set(self, key: str, value: str | bytes) -> None:
        """Store a value under a key."""

    def get(self, key: str) -> bytes:
        """Return the value under a key."""

    def add(self, key: str, amount: int) -> int:
        """Add to a counter, and return it."""

    def check(self, keys: list[str]) -> bool:
        """Return whether all keys exist."""

    def delete_key(self, key: str) -> bool:
        """Remove a key."""


@final
class _ClosedStore:
    """An empty store, which replaces a store that may no longer exist."""

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


@final
class JobStore:
    """Values, counters and texts in a job's store.

    Args:
        store: of the job.
    """

    def __init__(self, store: Store) -> None:
        self._store: Store = store

    def has(self, *keys: str) -> bool:
        """Return whether all keys exist."""
        return self._store.check(list(keys))

    def set(self, key: str, value: str) -> None:
        """Store a short value."""
        self._store.set(key, value)

    def value(self, key: str) -> bytes:
        """Return an existing value; for a missing one a store would wait."""
        return self._store.get(key)

    def add(self, key: str, amount: int) -> int:
        """Add to a counter, and return it."""
        return self._store.add(key, amount)

    def put(self, key: str, text: str) -> None:
        """Store a text of any length: compressed, in pieces, and finally the number of pieces."""
        packed = zlib.compress(text.encode(), 1)
        pieces = range(0, len(packed), _PIECE)
        for number, start in enumerate(pieces):
            self._store.set(f"{key}/{number}", packed[start : start + _PIECE])
        self._store.set(key, str(len(pieces)))

    def text(self, key: str) -> str:
        """Return a text that was `put`.

        Raises:
            LookupError: if there is no such text.
        """
        text = self.find(key)
        if text is None:
            raise LookupError(f"{key} is not in the job's store")
        return text

    def find(self, key: str) -> str | None:
        """Return a text that was `put`; None if there is none."""
        if not self.has(key):  # a store would wait for a missing key
            return None
        count = int(self._store.get(key))
        return zlib.decompress(b"".join(self._store.get(f"{key}/{number}") for number in range(count))).decode()

    def delete(self, key: str) -> None:
        """Remove a text."""
        for number in range(int(self._store.get(key))):
            self._store.delete_key(f"{key}/{number}")
        self._store.delete_key(key)

    def close(self) -> None:
        """Release the store, which is empty from then on.

        A store that outlives the process group it belongs to can abort the process when the interpreter ends.
        """
        self._store = _ClosedStore()
