"""A real TensorBoard with the tab, in a process of its own: `python -m tests.esdmon_tensorboard.server LOGDIR true`.

It prints its address, and ends when its standard input is closed. The second argument is `--load_fast`.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

ROOT = Path(__file__).parents[2]


class Server:
    """A running TensorBoard."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, route: str, **query: str) -> Any:
        """Return the JSON of a route of the tab."""
        return json.loads(self.fetch(f"data/plugin/esdmon/{route}?{urlencode(query)}")[1])

    def fetch(self, path: str) -> tuple[int, bytes, str]:
        """Return the status, the content and the type of any path."""
        try:
            with urlopen(f"{self.url}{path}") as answer:  # noqa: S310 -- of this machine
                return answer.status, answer.read(), answer.headers["Content-Type"]
        except HTTPError as error:
            with error:
                return error.code, error.read(), error.headers["Content-Type"]

    def overview(self, run: str, last: int, **query: str) -> Any:
        """Return the overview of a run as soon as TensorBoard has read as far as a step."""

        def view() -> Any:
            return self.get("overview", run=run, **query) if run in self.get("runs")["runs"] else {"steps": []}

        until(lambda: view()["steps"][-1:] == [last])
        return view()


@contextmanager
def tensorboard(logdir: Path, *, fast: bool) -> Iterator[Server]:
    """Run TensorBoard; `fast` is its data server, its default, and else its reader in Python."""
    command = [sys.executable, "-m", "tests.esdmon_tensorboard.server", str(logdir), str(fast).lower()]
    path = os.pathsep.join([str(ROOT), str(ROOT / "integrations"), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path},
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            yield Server(process.stdout.readline().strip())
        finally:
            process.stdin.close()


def until(is_so: Callable[[], object]) -> None:
    """Wait until something is so, at most a minute."""
    for _ in range(600):
        if is_so():
            return
        time.sleep(0.1)
    raise AssertionError("TensorBoard did not come so far within a minute")


def main() -> None:
    """Run TensorBoard until standard input ends."""
    from tensorboard import default, program

    from esdmon_tensorboard.loader import EsdLoader

    logdir, fast = sys.argv[1:]
    board = program.TensorBoard([*default.get_static_plugins(), EsdLoader])
    board.configure(["tensorboard", f"--logdir={logdir}", "--port=0", f"--load_fast={fast}", "--reload_interval=1"])
    print(board.launch(), flush=True)  # noqa: T201 -- what the test reads
    sys.stdin.read()


if __name__ == "__main__":
    main()
