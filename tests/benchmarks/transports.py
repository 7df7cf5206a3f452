"""Compare three transports of a fragment between ranks, and the behaviour of each after failures.

`python -m tests.benchmarks.transports` prints the table of docs/sharded.md, in some two minutes. Each cell is a pair of
processes: one holds 16 or 256 MB, the other fetches it in a thread with a patience of two seconds, while its main
thread looks how long it was stopped. Times depend on the machine; what matters is which cells say "stuck" or "broken".
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from torch._C._distributed_c10d import PrefixStore, ProcessGroupGloo, TCPStore

from esdmon.runtime.ranks.fragment_exchange import FragmentExchange, Moved

PATIENCE = 2.0
PIECE = 4 << 20
STUCK = 12.0  # seconds after which a fetch counts as stuck: six times the patience
CASES = ("in time", "late", "dead", "silent", "absent")
TOKEN = b"the key of the job"


def store(port: int, *, serves: bool) -> TCPStore:
    return TCPStore("127.0.0.1", port, None, serves, timedelta(seconds=PATIENCE), wait_for_workers=False)


def fetch_from_store(address: str, key: str, size: int) -> None:
    """A TCPStore in the process of the holder, as a letter box in pieces: a value of more than 8 MiB breaks it."""
    box = store(int(address), serves=False)
    for start in range(0, size, PIECE):
        box.get(f"{key}/{start}")


def serve_store(key: str, size: int, hold: Callable[[], None]) -> tuple[str, object]:
    box = store(0, serves=True)

    def put() -> None:
        hold()
        for start in range(0, size, PIECE):
            box.set(f"{key}/{start}", bytes(min(PIECE, size - start)))  # type: ignore[arg-type]  # bytes are taken

    threading.Thread(target=put, daemon=True).start()
    return str(box.port), box


def fetch_from_exchange(address: str, key: str, size: int) -> None:
    array: Any = torch.empty(size, dtype=torch.uint8).numpy()
    into = memoryview(array)
    box = FragmentExchange(TOKEN, 0, PATIENCE)
    box.fetch(1, address.replace("_", " "), key, into, until=time.monotonic() + PATIENCE)


def serve_exchange(key: str, size: int, hold: Callable[[], None]) -> tuple[str, object]:
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    box = FragmentExchange(TOKEN, 1 << 40, PATIENCE)

    def put() -> None:
        hold()
        copy = memoryview(bytes(size))
        box.keep(key, (lambda: copy, lambda: Moved(0, 0)), size, owner=0)

    threading.Thread(target=put, daemon=True).start()
    return box.open().replace(" ", "_"), box


def gloo(rank: int, port: int) -> Any:
    """A group beside the job's, constructed directly: it is not in torch's list of groups."""
    shared = PrefixStore("gloo", store(port, serves=False))
    return ProcessGroupGloo(shared, rank, 2, timedelta(seconds=PATIENCE))


class FromGloo:
    """The group is made at the first fetch, and used again at the next."""

    def __init__(self) -> None:
        self._group: Any = None

    def __call__(self, address: str, key: str, size: int) -> None:
        if self._group is None:
            self._group = gloo(0, int(address))
        self._group.recv([torch.empty(size, dtype=torch.uint8)], 1, int(key)).wait()


def serve_gloo(key: str, size: int, hold: Callable[[], None]) -> tuple[str, object]:
    box = store(0, serves=True)

    def put() -> None:
        group = gloo(1, box.port)
        hold()
        for number in (key, "2"):
            try:
                group.send([torch.zeros(size, dtype=torch.uint8)], 0, int(number)).wait()
            except RuntimeError as error:
                print("the sender:", str(error).splitlines()[0][:90], file=sys.stderr)

    threading.Thread(target=put, daemon=True).start()
    return str(box.port), box


Fetch = Callable[[str, str, int], None]
Serve = Callable[[str, int, Callable[[], None]], tuple[str, object]]
SERVE: dict[str, Serve] = {"TCPStore": serve_store, "gloo": serve_gloo, "sockets": serve_exchange}


def fetcher(way: str) -> Fetch:
    if way == "gloo":
        return FromGloo()
    return fetch_from_store if way == "TCPStore" else fetch_from_exchange


def hold_fragment(way: str, case: str, size: int) -> None:
    """The process of the holder: says its address, and does what the case says."""
    ready = threading.Event()
    delay = 2 * PATIENCE if case == "late" else 0.0

    def hold() -> None:
        time.sleep(delay)
        ready.set()

    address, kept = SERVE[way]("1", size, hold)
    if case != "late" and way != "gloo":  # whose group is made by both sides together
        ready.wait(60)
        time.sleep(1 + size / (64 << 20))
    print(address, flush=True)
    time.sleep(60)
    del kept


def attempt(fetch: Fetch, address: str, key: str, size: int) -> str:
    """Fetch in a thread; how it ended, after how long, and how long this thread could not run meanwhile."""
    ended: list[str] = []

    def run() -> None:
        try:
            fetch(address, key, size)
            ended.append("ok")
        except Exception as error:  # noqa: BLE001 -- the outcome
            ended.append(f"{type(error).__name__}: {str(error).splitlines()[0][:60]}")

    thread = threading.Thread(target=run, daemon=True)
    start = last = time.monotonic()
    longest = 0.0
    thread.start()
    while thread.is_alive() and last - start < STUCK:
        time.sleep(0.002)
        now = time.monotonic()
        longest, last = max(longest, now - last), now
    return f"{ended[0] if ended else 'STUCK'}, {last - start:.2f} s (main thread {1000 * longest:.0f} ms)"


def measure(way: str, case: str, size: int) -> str:
    if case == "absent":
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = str(probe.getsockname()[1])
        return attempt(fetcher(way), f"127.0.0.1_{address}" if way == "sockets" else address, "1", size)
    command = [sys.executable, "-m", __spec__.name, way, case, str(size)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    address = holder.stdout.readline().strip()
    fetch = fetcher(way)
    if case in ("dead", "silent"):
        os.kill(holder.pid, signal.SIGKILL if case == "dead" else signal.SIGSTOP)
        time.sleep(0.2)
    outcome = attempt(fetch, address, "1", size)
    if case == "late":
        time.sleep(2 * PATIENCE + 1)
        outcome += f"; again: {attempt(fetch, address, '2' if way == 'gloo' else '1', size)}"
    holder.kill()
    holder.wait()
    return outcome


def main() -> None:
    """Print the table, or be the holder of one cell."""
    if len(sys.argv) > 1:
        hold_fragment(sys.argv[1], sys.argv[2], int(sys.argv[3]))
        return
    for size in (16 << 20, 256 << 20):
        for case in CASES if size == 16 << 20 else ("in time", "late"):
            for way in SERVE:
                print(f"{size >> 20:4d} MB | {case:8} | {way:8} | {measure(way, case, size)}", flush=True)
    os._exit(0)  # threads that are stuck


if __name__ == "__main__":
    main()
