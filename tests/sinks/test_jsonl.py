"""The JSONL sink: strict JSON, line by line, that survives kills and restarts."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from esdmon.errors import InputError
from esdmon.records import SCHEMA, Alert, Coverage, LayerReport, Report
from esdmon.sinks import JsonlSink, Sink

LAYER = LayerReport("fc1", "ok", 5, N=4, M=2, measures={"alpha": 2.5, "xmin": math.nan}, nulls={"alpha": math.inf})
REPORT = Report(5, (LAYER, replace(LAYER, name="größe·层")), Coverage(8, 10), seconds=0.5)
ALERT = Alert(
    "rank_collapse:fc1",
    "rank_collapse",
    "error",
    "firing",
    "fc1",
    ("fc1",),
    step=5,
    since=3,
    message="fc1: rank 1 of 2.",
    evidence={"hard_rank": 1.0, "stable_rank": math.nan},
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file in a folder that is not there yet."""
    return tmp_path / "runs" / "a" / "esdmon.jsonl"


def refuse(constant: str) -> None:
    """Python's JSON reads NaN; JSON does not have it."""
    pytest.fail(f"{constant} is no JSON")


def lines(path: Path) -> list[dict[str, Any]]:
    """The objects in the file, read by JSON's letter."""
    return [json.loads(line, parse_constant=refuse) for line in path.read_text("utf-8").splitlines()]


def write(path: Path, *records: Report | Alert) -> None:
    """Open, write, close: one run of a script."""
    sink = JsonlSink(path)
    for record in records:
        if isinstance(record, Report):
            sink.write(record)
        else:
            sink.alert(record)
    sink.close()


def test_every_line_says_what_it_is(path: Path) -> None:
    """A line for each layer, one for the summary and one for an alert, with schema, kind and step in front."""
    write(path, REPORT, ALERT)
    assert [line["kind"] for line in lines(path)] == ["layer", "layer", "summary", "alert"]
    assert {(line["schema"], line["step"]) for line in lines(path)} == {(SCHEMA, 5)}
    assert {tuple(line)[:2] for line in lines(path)} == {("schema", "kind")}


def test_lines_hold_the_records(path: Path) -> None:
    """What a record has is what the line has."""
    write(path, REPORT, ALERT)
    records = [*REPORT.to_records(), REPORT.to_summary_record(), ALERT.to_record()]
    assert [{**line, **record} for line, record in zip(lines(path), records, strict=True)] == lines(path)


def test_what_is_undefined_is_null(path: Path) -> None:
    """Neither NaN nor infinity is written, in measures, nulls and evidence alike."""
    write(path, REPORT, ALERT)
    layer, *_, alert = lines(path)
    assert (layer["xmin"], layer["alpha_null"], alert["evidence"]["stable_rank"], alert["time"]) == (None,) * 4


def test_names_are_readable_in_the_file(path: Path) -> None:
    """UTF-8, without escapes."""
    write(path, REPORT)
    assert "größe·层" in path.read_text("utf-8")


def test_pandas_reads_the_mixed_kinds(path: Path) -> None:
    """One call, and a frame of layers is one comparison away."""
    write(path, REPORT, ALERT)
    frame = pd.read_json(path, lines=True)
    layers = frame[frame["kind"] == "layer"]
    assert list(frame["kind"]) == ["layer", "layer", "summary", "alert"]
    assert list(layers["name"]) == ["fc1", "größe·层"]
    assert list(layers["alpha"]) == [2.5, 2.5]
    assert layers["xmin"].isna().all()


def test_what_is_written_is_seen_at_once(path: Path) -> None:
    """Another process can read while the run goes on."""
    sink = JsonlSink(path)
    sink.alert(ALERT)
    assert len(lines(path)) == 1
    sink.close()


def test_a_second_run_appends(path: Path) -> None:
    """What an earlier run has written stays as it was."""
    write(path, REPORT)
    before = lines(path)
    write(path, ALERT)
    assert lines(path)[:-1] == before
    assert lines(path)[-1]["kind"] == "alert"


def test_a_line_that_was_cut_by_a_kill_is_removed(path: Path) -> None:
    """Whole lines stay, the cut one goes, and the next begins at the start of a line."""
    write(path, REPORT)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"schema": 1, "kind": "lay')
    write(path, ALERT)
    assert path.read_bytes().startswith(whole)
    assert [line["kind"] for line in lines(path)] == ["layer", "layer", "summary", "alert"]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b'{"schema": 1', id="one-cut-line"),
        pytest.param('{"name": "größe'.encode()[:-2], id="cut-inside-a-character"),
    ],
)
def test_a_file_without_a_whole_line_is_begun_anew(path: Path, content: bytes) -> None:
    """A kill during the very first write leaves nothing to keep."""
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    write(path, ALERT)
    assert [line["kind"] for line in lines(path)] == ["alert"]


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        pytest.param({"fc1", "fc2"}, TypeError, "not JSON serializable", id="set"),
        pytest.param([1.0, math.nan], ValueError, "not JSON compliant", id="nan-in-a-list"),
    ],
)
def test_evidence_that_is_no_json_leaves_no_half_line(
    path: Path, value: Any, error: type[Exception], message: str
) -> None:
    """A rule's evidence may be anything; the file stays whole and the sink usable."""
    sink = JsonlSink(path)
    with pytest.raises(error, match=message):
        sink.alert(replace(ALERT, evidence={"layers": value}))
    sink.alert(ALERT)
    sink.close()
    assert len(lines(path)) == 1


@pytest.mark.parametrize(
    "below",
    [
        pytest.param("file/esdmon.jsonl", id="its-folder-is-a-file"),
        pytest.param("file/a/esdmon.jsonl", id="below-a-file"),
        pytest.param(".", id="is-a-folder"),
    ],
)
def test_a_path_that_cannot_be_written_is_refused_at_once(tmp_path: Path, below: str) -> None:
    """Before training, in one sentence that names the path."""
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"^jsonl:.+ cannot be written: .+\. Choose another place\.$"):
        JsonlSink(tmp_path / below)


def test_closing_twice_is_harmless(path: Path) -> None:
    """As with any file."""
    sink = JsonlSink(path)
    sink.close()
    sink.close()
    assert path.read_bytes() == b""


def test_it_is_a_sink(path: Path) -> None:
    """It has all that the protocol asks for."""
    sink = JsonlSink(path)
    assert isinstance(sink, Sink)
    sink.close()


def test_a_whole_line_that_lacks_its_newline_is_kept(tmp_path: Path) -> None:
    """Only what a kill has cut short is dropped."""
    path = tmp_path / "run.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}')
    JsonlSink(path).close()
    assert path.read_text() == '{"a": 1}\n{"a": 2}\n'


def test_a_file_of_another_kind_is_left_alone(tmp_path: Path) -> None:
    """A slip in the path must not cost the user a file."""
    path = tmp_path / "notes.txt"
    path.write_text("My notes\nunfinished")
    with pytest.raises(InputError, match="holds something else than JSON lines"):
        JsonlSink(path)
    assert path.read_text() == "My notes\nunfinished"


def test_a_device_can_be_written() -> None:
    """What is no regular file is not searched for a broken line."""
    JsonlSink("/dev/null").close()
