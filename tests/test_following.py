"""Following the JSONL of a running run, through resumes and replaced files; and `esdmon tail`."""

import gzip
import io
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

import esdmon
from esdmon.cli import live, main
from esdmon.errors import InputError
from esdmon.records import LayerFinding, Report
from esdmon.records.timeline import Timeline
from esdmon.replay import reports
from esdmon.replay.following import FollowedRun, Follower
from esdmon.sinks import JsonlSink
from tests.records.test_timeline import alert

LINE = b'{"schema": 1, "kind": "note", "step": %d}\n'


@pytest.fixture(scope="module")
def report() -> Report:
    torch.manual_seed(0)
    return esdmon.analyze(nn.ModuleDict({"fc1": nn.Linear(96, 80), "fc2": nn.Linear(80, 64)}))


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[JsonlSink]:
    opened = JsonlSink(tmp_path / "esdmon.jsonl")
    opened.start("0123abcd")
    yield opened
    opened.close()


def write(sink: JsonlSink, report: Report, *steps: int) -> None:
    for step in steps:
        sink.write(replace(report, step=step, layers=tuple(replace(layer, step=step) for layer in report)))


def lines_of(piece: Any) -> list[int]:
    return [int(line.split()[-1].rstrip(b"}\n")) for line in piece.lines]


def test_what_is_appended_is_read_once(tmp_path: Path) -> None:
    """Half a line is left until it is whole, with or without its newline."""
    path = tmp_path / "a"
    path.write_bytes(LINE % 1 + (LINE % 2)[:10])
    follower = Follower(path)
    piece = follower.read()
    assert piece is not None
    assert (lines_of(piece), piece.is_first, piece.from_start) == ([1], True, True)
    assert follower.read() is None
    path.write_bytes(LINE % 1 + LINE[:-1] % 2)
    piece = follower.read()
    assert piece is not None
    assert (lines_of(piece), piece.is_first) == ([2], False)
    path.write_bytes(LINE % 1 + LINE % 2 + LINE % 3)
    piece = follower.read()
    assert piece is not None
    assert [line for line in piece.lines if line.strip()] == [LINE % 3]
    assert follower.read() is None


@pytest.mark.parametrize("replaced", [False, True], ids=["cut in place", "replaced"])
@pytest.mark.parametrize("more", [0, 1, 5])
def test_a_file_that_was_cut_is_read_again(replaced: bool, more: int, tmp_path: Path) -> None:  # noqa: FBT001
    """Shorter, as long as before, and longer than before at the next look."""
    path = tmp_path / "a"
    path.write_bytes(b"".join(LINE % step for step in range(1, 6)))
    follower = Follower(path)
    follower.read()
    resumed = [1, 2, *range(13, 13 + more)]
    if replaced:
        path.unlink()
        assert follower.read() is None
    with path.open("wb" if replaced else "rb+") as file:
        file.truncate(2 * len(LINE % 1))
        file.seek(0)
        file.write(b"".join(LINE % step for step in resumed))
    piece = follower.read()
    assert piece is not None
    assert (lines_of(piece), piece.is_first) == (resumed, True)


def test_a_large_file_is_read_from_its_end(tmp_path: Path) -> None:
    """From the first whole line on; also a packed one, by its members."""
    data = b"".join(LINE % step for step in range(10, 99))
    (tmp_path / "a").write_bytes(data)
    follower = Follower(tmp_path / "a", most=3 * len(LINE % 10) + 5)
    piece = follower.read()
    assert piece is not None
    assert (lines_of(piece), piece.from_start) == ([96, 97, 98], False)
    (tmp_path / "a.gz").write_bytes(gzip.compress(data))
    packed = Follower(tmp_path / "a.gz").read()
    assert packed is not None
    assert (lines_of(packed), packed.from_start) == ([*range(10, 99)], True)


@pytest.mark.parametrize("whole", ["ours", "another program"])
def test_a_packed_file_that_is_cut_off_is_read_as_far_as_it_goes(
    whole: str, tmp_path: Path, report: Report, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """`tail` says so, and the log where the file is loaded; of a whole file there is no such line."""
    sink = JsonlSink(tmp_path / "a.jsonl.gz")
    write(sink, report, *range(1, 40))
    sink.close()
    data = sink.path.read_bytes()
    if whole == "another program":
        data = gzip.compress(gzip.decompress(data))
    sink.path.write_bytes(data)
    assert main(["tail", str(sink.path), "--once"]) == 0
    assert "cut off" not in capsys.readouterr().out
    sink.path.write_bytes(data[: len(data) - len(data) // 4])
    assert main(["tail", str(sink.path), "--once"]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert words.endswith(
        "a.jsonl.gz ends within compressed data: it is cut off, damaged, or still being written. Later lines are "
        "missing."
    )
    last = esdmon.load(sink.path).last.step
    assert 2 < last < 39
    assert words.startswith(f"step {last}, ")
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"esdmon: {sink.path} ends within compressed data")


@pytest.mark.parametrize("name", ["esdmon.jsonl", "esdmon.jsonl.gz"])
def test_a_run_is_followed_through_a_resume(name: str, tmp_path: Path, report: Report) -> None:
    """Its stages and alerts are those of a run that was not interrupted."""
    sink = JsonlSink(tmp_path / name)
    sink.start("0123abcd")
    write(sink, report, 10, 20)
    followed = FollowedRun(tmp_path / name)
    assert followed.update()
    sink.alert(alert(20, "firing", "fc1"))
    write(sink, report, 30)
    assert followed.update()
    assert not followed.update()
    assert [episode.began for episode in followed.timeline.firing] == [20]
    sink.rewind(10)
    write(sink, report, 25, 35, 45, 55)
    sink.close()
    assert followed.update()
    assert followed.timeline.firing == []
    assert followed.timeline.last is not None
    assert followed.timeline.last.step == 55
    assert [stage.step for stage in followed.timeline.stages["fc1"]] == [10]
    assert followed.from_start


def test_the_run_that_wrote_last_is_shown(sink: JsonlSink, report: Report) -> None:
    """A file may contain several."""
    write(sink, report, 100, 200)
    sink.start("another0")
    write(sink, report, 20)
    followed = FollowedRun(sink.path)
    followed.update()
    assert followed.timeline.last is not None
    assert followed.timeline.last.step == 20


@pytest.fixture
def faulty(sink: JsonlSink, report: Report) -> Path:
    """A run in which an alert fires and another has ended, one is so old that only its count is known."""
    write(sink, report, 10, 20)
    text = "fc1, fc2: rank_collapse: rank 40 of 80 (50%). Lower the weight decay."
    parts = (LayerFinding("fc1", 19, "rank 40 of 80 (50%)"), LayerFinding("fc2", 15, f"rank 45 of 80{' long' * 20}"))
    fired = replace(alert(20, "firing", "fc1", "fc2", rule="rank_collapse", severity="error"), message=text)
    fired = replace(fired, by_layer=parts)
    sink.alert(alert(10, "firing", "fc2", rule="update_surge"))
    sink.alert(fired)
    sink.alert(alert(20, "resolved", "fc2", rule="update_surge"))
    sink.write(replace(report, step=30, firing={"rank_collapse": 2, "dead_layer": 1}))
    return sink.path


def test_tail_says_what_is_wrong(faulty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In words, before the table, which fits 80 columns. In a pipe it is printed once without `--once`, too."""
    for arguments in (["tail", str(faulty.parent)], ["tail", str(faulty), "--once"]):
        assert main(arguments) == 0
        text = capsys.readouterr().out
        assert max(map(len, text.splitlines())) <= 80
        words = " ".join(text.split())
        assert "step 30, 2 layers: 2 random-like" in words
        assert "error: rank_collapse in fc1, fc2 since step 19: rank 40 of 80 (50%). Lower the weight decay." in words
        assert "dead_layer fires in 1 layer" in words
        assert "fc2 since step 15: rank 45 of 80" in words
        assert "update_surge in fc2 from step 9 to 20" in words
        assert words.index("error: rank_collapse") < words.index("layer phase since alpha")
        assert "2 of 2 read earlier" in words


def test_tail_names_a_notice(sink: JsonlSink, report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    """Its layer and its step, and does not say that nothing fires."""
    write(sink, report, 10, 20)
    text = "fc2: dead_layer: its weight does not move. Check it."
    sink.alert(replace(alert(20, "firing", "fc2", rule="dead_layer", severity="info"), message=text))
    assert main(["tail", str(sink.path), "--once"]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "notice: dead_layer in fc2 since step 19: its weight does not move. Check it." in words
    assert "No alert fires" not in words


def test_tail_of_a_large_model_is_cut(sink: JsonlSink, report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    """To the layers with an alert and those that changed last; long and hostile names do not break the table."""
    names = [f"transformer.h.{k}.attn.c_attn.weight/q" for k in range(60)]
    names[7] = "transformer.[red]\n\x1b[2J"
    layers = tuple(replace(report.layers[0], name=name, step=10) for name in names)
    sink.write(replace(report, step=10, layers=layers))
    sink.alert(alert(10, "firing", names[50], names[7]))
    assert main(["tail", str(sink.path), "--once"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert "20 more layers" in " ".join(text.split())
    assert "[red]??[2J" in text
    assert "\x1b[2J" not in text


def test_a_line_on_a_layer_shows_what_was_measured(report: Report) -> None:
    """Names that differ in their middle are cut so that they differ still, and the number is there in 80 columns."""
    names = [f"transformer.layers.{k}.self_attention.in_projection_weight/q" for k in range(3)]
    timeline = Timeline()
    timeline.take(replace(report, layers=tuple(replace(report.layers[0], name=name, step=10) for name in names)))
    found = tuple(LayerFinding(name, since=10, what="spectral norm 57.4 is over 3 times", after=5) for name in names)
    timeline.alert(replace(alert(10, "firing", *names), by_layer=found))
    console = Console(width=80, file=io.StringIO())
    console.print(live.overview(timeline, width=80))
    lines = [line for line in console.file.getvalue().splitlines() if "57.4" in line]  # type: ignore[attr-defined]
    assert len(set(lines)) == len(lines) == 3


@pytest.mark.parametrize(
    ("width", "titles"),
    [
        (80, ["layer", "phase", "since", "alpha", "soft", "rank", "spikes"]),
        (60, ["layer", "phase", "since", "alpha"]),
        (42, ["layer", "phase", "since"]),
    ],
)
def test_a_narrow_terminal_shows_fewer_columns_and_cuts_none(report: Report, width: int, titles: list[str]) -> None:
    timeline = Timeline()
    layers = tuple(replace(layer, name=f"blocks.{k}.up") for k, layer in enumerate(report.layers))
    timeline.take(replace(report, layers=layers))
    console = Console(width=width, file=io.StringIO())
    console.print(live.overview(timeline, width=width))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    table = shown[shown.index(" layer ") :]
    assert table.splitlines()[0].split() == titles
    assert all(layer.name in table for layer in layers)
    assert "…" not in table


@pytest.mark.parametrize(("height", "rows", "lines"), [(60, 16, 8), (24, 7, 8), (20, 5, 6), (8, 1, 0)])
def test_the_overview_fits_into_a_terminal(report: Report, height: int, rows: int, lines: int) -> None:
    """What is wrong stays on the screen: rows of the table and then lines on single layers make place for it."""
    names = [f"h.{k}.fc" for k in range(16)]
    timeline = Timeline()
    layers = tuple(replace(report.layers[0], name=name, step=10) for name in names)
    timeline.take(replace(report, step=10, layers=layers))
    found = tuple(LayerFinding(name, since=10, what="is 9") for name in names)
    timeline.alert(replace(alert(10, "firing", *names), by_layer=found))
    console = Console(width=80, file=io.StringIO())
    console.print(live.overview(timeline, width=80, height=height))
    text = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(text) <= height or rows == 1
    assert text[0].startswith("step 10, 16 layers")
    assert text[1].startswith("warning: ")
    assert sum("±" in line for line in text) == rows
    assert sum(line.startswith("  h.") for line in text) == lines
    assert any(line.startswith(f"{16 - rows} more layers") for line in text) == (rows < 16)


@pytest.mark.parametrize(
    ("text", "message"), [(None, "not found"), ("x\n", "not JSON: 'x'"), ("{}\n", "not a line of")]
)
def test_tail_of_something_else(
    text: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / "esdmon.jsonl").write_text(text)
    assert main(["tail", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ('{"schema": 1, "kind": "note", "step": 0}\n', "contains no report of readings, only 1 note line"),
    ],
)
def test_tail_before_the_first_reading(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says what there is, and when the first reading comes."""
    monkeypatch.setenv("COLUMNS", "400")
    (tmp_path / "esdmon.jsonl").write_text(text)
    assert main(["tail", str(tmp_path), "--once"]) == 0
    found = capsys.readouterr().out
    assert found.startswith(f"no reading yet: {tmp_path / 'esdmon.jsonl'} {message}. The first one is taken at")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of another user: the error does not speak of writing."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "esdmon.jsonl").touch()
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=r"esdmon\.jsonl cannot be read: Permission denied"):
        FollowedRun(tmp_path / "esdmon.jsonl").update()
    with pytest.raises(InputError, match=r"esdmon\.jsonl cannot be read: Permission denied"):
        list(reports(tmp_path))


TAIL = """
import signal, sys
from esdmon.cli import live, main
signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background ignores Ctrl-C
sys.exit(main(["tail", sys.argv[1]]))
"""


def test_tail_in_a_terminal(sink: JsonlSink, report: Report) -> None:
    """It shows a new reading when it comes, and Ctrl-C ends it well."""
    write(sink, report, 10)
    ours, theirs = pty.openpty()
    environment = os.environ | {"COLUMNS": "80", "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-c", TAIL, str(sink.path)], stdout=theirs, stderr=theirs, stdin=theirs, env=environment
    )
    os.close(theirs)
    try:
        _read_until(ours, b"step 10")
        write(sink, report, 20)
        _read_until(ours, b"step 20")
        process.send_signal(signal.SIGINT)
        _read_until(ours, None)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def _read_until(terminal: int, wanted: bytes | None) -> None:
    """Read from a terminal until a text has come, or for None until its other end is closed."""
    read = b""
    while wanted is None or wanted not in read:
        assert select.select([terminal], [], [], 120)[0], f"nothing more came after {read!r}"
        try:
            piece = os.read(terminal, 1 << 16)
        except OSError:  # it was closed
            piece = b""
        read += piece
        if not piece:
            assert wanted is None, read
            return
        assert b"Traceback" not in read, read
