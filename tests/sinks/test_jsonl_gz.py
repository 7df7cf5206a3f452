"""A JSONL whose name ends with .gz: whole gzip members, which are appended, cut and repaired as lines are."""

import gzip
import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from esdmon.cli import main
from esdmon.errors import InputError
from esdmon.replay import records, reports
from esdmon.sinks import JsonlSink, members
from tests.sinks.jsonl_files import ALERT, REPORT, append, started, write


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    return tmp_path / "esdmon.jsonl.gz"


def written(path: Path) -> list[tuple[str, int]]:
    """Return the run and the step of each line, as any program that reads gzip finds them."""
    lines = [json.loads(line) for line in gzip.decompress(path.read_bytes()).split(b"\n") if line]
    return [(line["run"], line["step"]) for line in lines]


def test_it_is_read_while_it_grows(packed: Path, tmp_path: Path) -> None:
    """By gzip, by pandas and by our own reader: the lines are those of a plain file."""
    plain = tmp_path / "plain.jsonl"
    with closing(started(packed, "aa")) as sink, closing(started(plain, "aa")) as other:
        for step in range(5, 9):
            report = replace(REPORT, step=step, layers=tuple(replace(layer, step=step) for layer in REPORT.layers))
            for each in (sink, other):
                each.write(report)
                each.alert(replace(ALERT, step=step))
            assert gzip.decompress(packed.read_bytes()) == plain.read_bytes()
            assert len(pd.read_json(packed, lines=True)) == 4 * (step - 4)
            assert list(records(packed)) == list(records(plain))


def test_a_second_run_appends_to_it(packed: Path) -> None:
    append(packed, "aa", 1, 3)
    append(packed, "bb", 2)
    assert written(packed) == [("aa", 1), ("aa", 3), ("bb", 2)]


@pytest.mark.parametrize("lost", [1, 5, 30, "header"])
def test_a_member_that_a_kill_cut_short_is_removed(packed: Path, lost: int | str) -> None:
    """The members before it are kept, and readers stop before it."""
    append(packed, "aa", 1, 3)
    size = packed.stat().st_size
    append(packed, "aa", 5)
    end = size + 7 if lost == "header" else packed.stat().st_size - int(lost)
    packed.write_bytes(packed.read_bytes()[:end])
    assert [record["step"] for record in records(packed)] in ([1, 3], [1, 3, 5])  # gzip checks a line after reading it
    append(packed, "aa", 6)
    assert written(packed) == [("aa", 1), ("aa", 3), ("aa", 6)]


@pytest.mark.parametrize("whole", [0, 4, 40])
def test_a_file_of_one_torn_member_begins_again(packed: Path, whole: int) -> None:
    append(packed, "aa", 1)
    packed.write_bytes(packed.read_bytes()[:whole])
    append(packed, "aa", 2)
    assert written(packed) == [("aa", 2)]


@pytest.mark.parametrize(("step", "left"), [(0, []), (3, [1, 3]), (4, [1, 3]), (9, [1, 3, 5])])
def test_a_rewind_drops_what_a_run_wrote_after_a_step(packed: Path, step: int, left: list[int]) -> None:
    append(packed, "aa", 1, 3, 5)
    with closing(started(packed, "aa")) as sink:
        sink.rewind(step)
        sink.alert(replace(ALERT, step=7))
    assert written(packed) == [("aa", k) for k in (*left, 7)]


def test_members_of_another_run_are_never_cut(packed: Path) -> None:
    append(packed, "aa", 1, 5, 9)
    append(packed, "bb", 1, 5, 9)
    append(packed, "aa", 10)
    with closing(started(packed, "bb")) as sink:
        sink.rewind(4)
        sink.alert(replace(ALERT, step=6))
    assert written(packed) == [("aa", 1), ("aa", 5), ("aa", 9), ("bb", 1), ("aa", 10), ("bb", 6)]


def test_a_sink_by_itself_goes_on_with_the_last_run(packed: Path) -> None:
    append(packed, "aa", 1, 3, 5)
    with closing(JsonlSink(packed)) as sink:
        sink.rewind(3)
        sink.alert(replace(ALERT, step=5))
    assert written(packed) == [("aa", 1), ("aa", 3), ("aa", 5)]


@pytest.mark.parametrize("newline", [b"", b"\n"])
def test_a_file_that_another_program_has_compressed_is_continued(
    packed: Path, newline: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """It is one member, of which some lines are cut."""
    append(packed, "aa", 1, 3, 5)
    packed.write_bytes(gzip.compress(gzip.decompress(packed.read_bytes()).rstrip() + newline))
    append(packed, "aa", 7)
    assert written(packed) == [("aa", 1), ("aa", 3), ("aa", 5), ("aa", 7)]
    with closing(started(packed, "aa")) as sink:
        sink.rewind(3)
        sink.alert(replace(ALERT, step=4))
    assert written(packed) == [("aa", 1), ("aa", 3), ("aa", 4)]
    assert [record["step"] for record in records(packed)] == [1, 3, 4]
    assert not caplog.records


def test_an_alert_of_a_later_step_before_an_earlier_reading_is_cut(packed: Path) -> None:
    append(packed, "aa", 4, 12, 8)
    with closing(started(packed, "aa")) as sink:
        sink.rewind(10)
    assert written(packed) == [("aa", 4), ("aa", 8)]


def test_of_a_large_file_only_the_end_is_decompressed(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Members are found from the end by what they begin with, here in blocks of a thousand bytes."""
    monkeypatch.setattr("esdmon.sinks.lines.BLOCK_SIZE", 1000)
    monkeypatch.setattr("esdmon.sinks.members._BLOCK_SIZE", 1000)
    append(packed, "aa", *range(1, 301))
    found: list[int] = []
    real = members._unpack

    def spy(start: int, data: bytes) -> members.Members:
        found.append(len(data))
        return real(start, data)

    monkeypatch.setattr(members, "_unpack", spy)
    with closing(started(packed, "aa")) as sink:
        sink.rewind(290)
    assert len(found) < 20
    assert written(packed) == [("aa", step) for step in range(1, 291)]


@pytest.mark.parametrize(
    "content",
    [b"text\n", b'{"schema":1,"kind":"summary","run":"a","step":1}\n', gzip.compress(b"text\n"), gzip.compress(b"")],
    ids=["text", "plain lines", "gzipped text", "gzipped nothing"],
)
def test_another_file_is_refused_and_left_alone(packed: Path, content: bytes) -> None:
    packed.write_bytes(content)
    with pytest.raises(InputError, match="something other than gzipped JSON lines of esdmon"):
        JsonlSink(packed)
    assert packed.read_bytes() == content


def test_a_file_with_something_behind_its_members_is_refused(packed: Path) -> None:
    append(packed, "aa", 1)
    content = packed.read_bytes() + b"something else"
    packed.write_bytes(content)
    with pytest.raises(InputError, match="something other than gzipped JSON lines of esdmon"):
        JsonlSink(packed)
    assert packed.read_bytes() == content


def test_rules_are_asked_again(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the file or by its folder."""
    write(packed, REPORT)
    assert [report.step for report in reports(packed.parent)] == [5]
    assert main(["alerts", "replay", str(packed)]) == 0
    assert "no alert" in capsys.readouterr().out


def test_a_plain_file_with_that_name_is_not_read(packed: Path) -> None:
    packed.write_text('{"schema":1,"kind":"summary","run":"a","step":1}\n')
    with pytest.raises(InputError, match="is not a gzip file"):
        list(reports(packed))
