"""esdmon scan as a process: full disks, closed pipes, ranks and terminals."""

import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout, suppress
from pathlib import Path

import pytest
import torch

from esdmon.cli import main
from esdmon.cli.scan import Ranks, split
from esdmon.weights import discover
from tests.cli.checkpoints import weights
from tests.ranks import torchrun


def run(*arguments: str, stdout: int | io.BufferedWriter = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "esdmon", "scan", *arguments],
        # One thread, as torchrun sets it: the last digits depend on that. With a buffer, as most users have it.
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": ""},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_line(checkpoint: Path) -> None:
    """No traceback at exit either."""
    with Path("/dev/full").open("wb") as full:
        result = run(str(checkpoint), stdout=full)
    assert (result.returncode, result.stderr) == (2, "esdmon scan: cannot write: No space left on device\n")


def test_a_reader_that_leaves_early_is_no_failure_of_the_scan(checkpoint: Path) -> None:
    """`esdmon scan … | head -1`: the status of `cat … | head -1`, and not that of a file that cannot be read."""
    reader, writer = os.pipe()
    os.close(reader)
    result = run(str(checkpoint), stdout=writer)
    os.close(writer)
    assert (result.returncode, result.stderr) == (141, "")


def scan_to_file(checkpoint: Path, out: Path) -> None:
    """Scan as one of the ranks, into a file of its own."""
    with (out / os.environ["RANK"]).open("w") as file, redirect_stdout(file):
        assert main(["scan", str(checkpoint), "--json", "--exact"]) == 0


def test_ranks_share_the_work_and_rank_0_writes(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the environment that torchrun gives, the same output as from one process."""
    assert main(["scan", str(checkpoint), "--json", "--exact"]) == 0
    torchrun(scan_to_file, checkpoint, tmp_path)
    assert json.loads((tmp_path / "0").read_text()) == json.loads(capsys.readouterr().out)
    assert (tmp_path / "1").read_text() == ""


def in_terminal(*arguments: str, width: int) -> tuple[str, str]:
    """Standard output and error of a scan in a terminal of that width, as the bytes that it gets."""
    outputs = []
    outer, inner = zip(*(pty.openpty() for _ in range(2)), strict=True)
    for end in inner:
        fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    command = [sys.executable, "-m", "esdmon", "scan", *arguments]
    with subprocess.Popen(command, stdout=inner[0], stderr=inner[1], env=environment | {"TERM": "xterm"}) as process:
        for end in inner:
            os.close(end)
        with ThreadPoolExecutor(2) as pool:  # a terminal that is not read from fills up
            outputs = [text.decode() for text in pool.map(read_all, outer)]
    assert process.returncode == 0, outputs
    return outputs[0].replace("\r\n", "\n"), outputs[1]


def read_all(end: int) -> bytes:
    parts = []
    with os.fdopen(end, "rb", buffering=0) as file, suppress(OSError):  # Linux reports a closed terminal as an error
        while part := file.read(4096):
            parts.append(part)
    return b"".join(parts)


def test_a_terminal_gets_a_table_that_fits_and_a_progress_bar(tmp_path: Path) -> None:
    """Names are shortened before a column is left out for good, and the columns left out are named."""
    names = [f"model.decoder.layers.{number}.self_attention.projection" for number in range(3)]
    torch.save({f"{name}.weight": torch.randn(200, 150) for name in names}, tmp_path / "a.pt")
    out, err = in_terminal(str(tmp_path / "a.pt"), width=80)
    lines = out.splitlines()
    assert re.split(r"\s{2,}", lines[0]) == ["layer", "N × M", "phase", "alpha", "soft rank", "spikes"]
    assert max(map(len, lines[:4])) <= 80
    assert lines[4] == "too narrow for: hard rank, stable rank, type (see --columns)"
    assert "100%" in err
    assert "0:00:0" in err


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_each_matrix_is_one_ranks(count: int) -> None:
    """All of them, none twice, and the largest not together."""
    matrices = discover(weights()).matrices
    parts = [[matrix.name for matrix in split(matrices, Ranks(rank, count))] for rank in range(count)]
    assert sorted(name for part in parts for name in part) == ["a", "b", "c"]
    assert max(map(len, parts)) == {1: 3, 2: 2, 3: 1, 9: 1}[count]
