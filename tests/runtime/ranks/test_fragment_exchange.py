"""Copies that other ranks fetch: each link fails alone, and only ranks of the job are answered."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from esdmon.runtime.ranks.fragment_exchange import FragmentExchange, Moved, PeerError
from tests.descriptors import without_descriptors

TOKEN = b"the key of the job"
MOVED = Moved(1.0, 4.0)


def box(token: bytes = TOKEN, *, most: int = 1000, patience: float = 0.2) -> FragmentExchange:
    return FragmentExchange(token, most, patience)


@pytest.fixture
def holder(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[FragmentExchange, str]]:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    exchange = box()
    yield exchange, exchange.open()
    exchange.close()


def copy_of(data: bytes) -> Callable[[], memoryview]:
    return lambda: memoryview(bytearray(data))


def fetch(address: str, key: str = "a", size: int = 3, *, token: bytes = TOKEN, wait: float = 0.0) -> bytes:
    into = bytearray(size)
    moved = box(token).fetch(1, address, key, memoryview(into), until=time.monotonic() + wait)
    assert moved == MOVED
    return bytes(into)


def test_a_copy_is_fetched_once(holder: tuple[FragmentExchange, str]) -> None:
    """And then forgotten."""
    exchange, address = holder
    exchange.keep("a", (copy_of(b"abc"), lambda: MOVED), 3, owner=1)
    assert fetch(address) == b"abc"
    assert (exchange.n_kept, exchange.kept_bytes, exchange.peak_bytes) == (0, 0, 3)
    with pytest.raises(PeerError, match="rank 1 has no copy of this step") as caught:
        fetch(address)
    assert caught.value.answers


def test_a_copy_that_comes_later_is_waited_for(holder: tuple[FragmentExchange, str]) -> None:
    """The owner may be ahead of the rank that holds the fragment."""
    exchange, address = holder
    timer = threading.Timer(0.05, exchange.keep, ["a", (copy_of(b"abc"), lambda: MOVED), 3], {"owner": 1})
    timer.start()
    assert fetch(address, wait=20) == b"abc"


def test_an_error_is_said_in_the_place_of_the_copy(holder: tuple[FragmentExchange, str]) -> None:
    """At once, so that the owner waits for nothing."""
    exchange, address = holder
    exchange.fail("a", "cannot read its part: ValueError: broken", owner=1)
    with pytest.raises(PeerError, match="rank 1 cannot read its part: ValueError: broken"):
        fetch(address, wait=60)


def test_who_does_not_know_the_token_gets_nothing(holder: tuple[FragmentExchange, str]) -> None:
    """The copy stays for who does."""
    exchange, address = holder
    exchange.keep("a", (copy_of(b"abc"), lambda: MOVED), 3, owner=1)
    with pytest.raises(PeerError, match="rank 1 cannot be reached: the connection was closed"):
        fetch(address, token=b"a guess")
    assert fetch(address) == b"abc"


@pytest.mark.parametrize("junk", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x00\x00\x00\x28" + 40 * b"x", b"\xff" * 100])
def test_a_port_scan_changes_nothing(junk: bytes, holder: tuple[FragmentExchange, str]) -> None:
    """Garbage is not answered."""
    exchange, address = holder
    exchange.keep("a", (copy_of(b"abc"), lambda: MOVED), 3, owner=1)
    host, port = address.split()
    with socket.create_connection((host, int(port)), timeout=5) as link:
        link.sendall(junk)
        with suppress(OSError):  # it may be closed already
            link.shutdown(socket.SHUT_WR)
            assert link.recv(10) == b""
    assert fetch(address) == b"abc"


def test_a_copy_of_another_size_is_refused(holder: tuple[FragmentExchange, str]) -> None:
    """The shape of the parameter may have changed."""
    exchange, address = holder
    exchange.keep("a", (copy_of(b"abcd"), lambda: MOVED), 4, owner=1)
    with pytest.raises(PeerError, match="rank 1 sent 4 bytes, expected 3"):
        fetch(address)


def test_the_bytes_that_are_kept_are_bounded(holder: tuple[FragmentExchange, str]) -> None:
    """One that is larger than the bound is kept alone."""
    exchange, address = holder
    exchange.keep("a", (copy_of(bytes(2000)), lambda: MOVED), 2000, owner=1)
    exchange.keep("b", (copy_of(b"abc"), lambda: MOVED), 3, owner=1)
    with pytest.raises(PeerError, match="rank 1 has no memory for it"):
        fetch(address, "b")
    assert exchange.peak_bytes == 2000
    exchange.expire(time.monotonic() + 1)
    assert (exchange.n_kept, exchange.kept_bytes) == (0, 0)


def test_a_rank_that_is_gone(holder: tuple[FragmentExchange, str]) -> None:
    """Refused at once."""
    exchange, address = holder
    exchange.close()
    with pytest.raises(PeerError, match="rank 1 cannot be reached: Connection refused") as caught:
        fetch(address)
    assert not caught.value.answers


def test_a_rank_that_is_silent() -> None:
    """A process that is stopped still takes connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1 {server.getsockname()[1]}"
        with pytest.raises(PeerError, match="rank 1 did not answer in time") as caught:
            fetch(address)
    assert not caught.value.answers


def test_a_rank_that_dies_in_the_middle() -> None:
    """After the head of its answer, and a part of the copy."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def half() -> None:
            link, _ = server.accept()
            with link:
                link.recv(4096)
                link.sendall((3).to_bytes(8) + bytes(16) + b"a")

        thread = threading.Thread(target=half)
        thread.start()
        with pytest.raises(PeerError, match="rank 1 cannot be reached"):
            fetch(f"127.0.0.1 {server.getsockname()[1]}", wait=20)
        thread.join()


def test_closing_waits_until_the_copies_are_fetched(holder: tuple[FragmentExchange, str]) -> None:
    """Else the last readings of a run would be lost."""
    exchange, address = holder
    exchange.keep("a", (copy_of(b"abc"), lambda: MOVED), 3, owner=1)
    timer = threading.Timer(0.05, fetch, [address])
    timer.start()
    exchange.drain(20, set)
    assert exchange.n_kept == 0
    timer.join()


def test_closing_does_not_wait_for_ranks_that_have_closed(holder: tuple[FragmentExchange, str]) -> None:
    """As after Ctrl-C, where one rank was a step ahead: they fetch nothing more."""
    exchange, _ = holder
    exchange.keep("a", (copy_of(b"abc"), lambda: MOVED), 3, owner=1)
    exchange.keep("b", (copy_of(b"abc"), lambda: MOVED), 3, owner=2)
    looks = iter([set(), {1}, {1, 2}])
    exchange.drain(20, lambda: next(looks))
    assert list(looks) == []
    assert exchange.n_kept == 2


def test_a_rank_serves_again_once_it_has_a_descriptor(holder: tuple[FragmentExchange, str]) -> None:
    """The loader of the training's data may have all of them for a moment; the rank was not asked again then."""
    exchange, address = holder
    exchange.keep("a", (copy_of(b"abc"), lambda: MOVED), 3, owner=1)
    host, port = address.split()
    with without_descriptors() as client:
        client.connect((host, int(port)))
        client.settimeout(0.2)
        with suppress(OSError):
            client.recv(1)
    assert fetch(address, wait=5) == b"abc"


def test_a_rank_serves_again_once_it_can_start_a_thread(
    holder: tuple[FragmentExchange, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A control group may limit them."""
    exchange, address = holder
    exchange.keep("a", (copy_of(b"abc"), lambda: MOVED), 3, owner=1)

    def refuse(_thread: threading.Thread) -> None:
        monkeypatch.undo()
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(PeerError, match="rank 1 "):
        fetch(address)
    assert fetch(address, wait=5) == b"abc"
