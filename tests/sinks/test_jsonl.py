"""The JSONL sink: strict JSON, line by line."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from esdmon.records import SCHEMA, Coverage, Report
from esdmon.records.layer import RECORD_KEYS
from esdmon.sinks import JsonlSink, Sink
from tests.jsonl import records_in
from tests.sinks.jsonl_files import ALERT, LAYER, REPORT, append, started, write


def test_every_line_says_what_it_is(path: Path) -> None:
    """Each layer has a line, the summary and an alert too; schema, kind, run and step come first."""
    write(path, REPORT, ALERT)
    assert [line["kind"] for line in records_in(path)] == ["layer", "layer", "summary", "alert"]
    assert {(line["schema"], line["step"]) for line in records_in(path)} == {(SCHEMA, 5)}
    assert {tuple(line)[:4] for line in records_in(path)} == {("schema", "kind", "run", "step")}


def test_lines_hold_the_records(path: Path) -> None:
    """The first line of each layer contains its whole record, except for the step of writing, which is `step + age`."""
    write(path, REPORT, ALERT)
    records = [*REPORT.to_records(), REPORT.to_summary_record(), ALERT.to_record()]
    for record in records[:2]:
        assert record.pop("emitted_step") == 5
    assert [{**line, **record} for line, record in zip(records_in(path), records, strict=True)] == records_in(path)


def test_what_has_not_changed_is_not_repeated(path: Path) -> None:
    """Measures are always written; a description where it changes, so that a forward fill by layer restores it."""
    later = [replace(LAYER, step=6), replace(LAYER, step=7, N=6, dead_rows=1, measures={"alpha": 2.5})]
    write(path, *(Report(layer.step, (layer,), Coverage(8, 10)) for layer in (LAYER, *later)))
    found = [line for line in records_in(path) if line["kind"] == "layer"]
    assert "explanation" in found[0]
    assert found[1] == {
        "schema": SCHEMA,
        "kind": "layer",
        "run": found[0]["run"],
        "step": 6,
        "name": "fc1",
        "status": "ok",
        "N": 4,
        "M": 2,
        "update_ratio": None,
        "step_ratio": None,
        "step_growth": None,
        "start_ratio": None,
        "phase": "unclassified",
        "phase_confidence": 0,
        "alpha_is_meaningful": False,
        "alpha": 2.5,
        "xmin": None,
    }
    assert set(found[2]) - set(found[1]) == {"Q", "dead_rows"}
    filled = pd.DataFrame(found).groupby(["run", "name"]).ffill()
    assert list(filled["dead_rows"]) == [0, 0, 1]
    assert list(filled["Q"]) == [2, 2, 3]


@pytest.mark.parametrize("cause", ["rewind", "another-run", "opened-again", "failed", "deleted"])
def test_the_next_lines_are_whole_where_earlier_ones_may_be_missing(path: Path, cause: str) -> None:
    """Otherwise what was left out could not be restored."""
    sink = JsonlSink(path)
    sink.write(REPORT)
    match cause:
        case "rewind":
            sink.rewind(4)
        case "another-run":
            sink.start("another")
        case "opened-again":
            sink.close()
            sink = JsonlSink(path)
        case "failed":
            with pytest.raises(TypeError, match="not JSON serializable"):
                sink.write(replace(REPORT, layers=(replace(LAYER, reason={1}),)))  # type: ignore[arg-type]
        case "deleted":
            path.unlink()
    sink.write(replace(REPORT, step=6, layers=(replace(LAYER, step=6),)))
    sink.close()
    last = [line for line in records_in(path) if line["kind"] == "layer"][-1]
    assert last["step"] == 6
    assert {*RECORD_KEYS} - {*last} == {"emitted_step"}


def test_what_is_undefined_is_null(path: Path) -> None:
    """Neither NaN nor infinity is written, be it in measures, nulls or evidence."""
    write(path, REPORT, ALERT)
    layer, *_, alert = records_in(path)
    assert (layer["xmin"], layer["alpha_null"], alert["evidence"]["stable_rank"], alert["time"]) == (None,) * 4


def test_names_are_readable_in_the_file(path: Path) -> None:
    """Names are in UTF-8, without escapes."""
    write(path, REPORT)
    assert "größe·层" in path.read_text("utf-8")


def test_a_name_that_utf_8_cannot_encode_costs_no_reading(path: Path) -> None:
    """A lone surrogate, as Python has it in names of files that are not UTF-8. JSON has an escape sequence for it."""
    report = Report(5, (replace(LAYER, name="caf\udce9"), LAYER), Coverage(8, 10))
    write(path, report)
    assert [line["name"] for line in records_in(path) if line["kind"] == "layer"] == ["caf\udce9", LAYER.name]


def test_pandas_reads_the_mixed_kinds(path: Path) -> None:
    """One call reads all, and one comparison selects the layers."""
    write(path, REPORT, ALERT)
    frame = pd.read_json(path, lines=True)
    layers = frame[frame["kind"] == "layer"]
    assert list(frame["kind"]) == ["layer", "layer", "summary", "alert"]
    assert list(layers["name"]) == ["fc1", "größe·层"]
    assert list(layers["alpha"]) == [2.5, 2.5]
    assert layers["xmin"].isna().all()


def test_what_is_written_is_seen_at_once(path: Path) -> None:
    """Another process can read during the run."""
    sink = JsonlSink(path)
    sink.alert(ALERT)
    assert len(records_in(path)) == 1
    sink.close()


def test_a_second_run_appends(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Lines of an earlier run are unchanged, and the log warns once that the file now has two."""
    write(path, REPORT)
    assert not caplog.records
    before = records_in(path)
    write(path, ALERT, ALERT)
    assert records_in(path)[:-2] == before
    assert records_in(path)[-1]["kind"] == "alert"
    (message,) = caplog.messages
    assert message.startswith(f"esdmon: {path} already holds another run.")
    assert records_in(path)[-1]["run"] in message


def test_a_run_that_is_continued_is_not_another(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As when a state is loaded: the id that the sink was first given is replaced."""
    append(path, "aa", 1)
    sink = started(path, "bb")
    sink.start("aa")
    sink.alert(ALERT)
    sink.close()
    assert not caplog.records


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
    assert len(records_in(path)) == 1


def test_closing_twice_is_harmless(path: Path) -> None:
    """Closing is idempotent, as with any file."""
    sink = JsonlSink(path)
    sink.close()
    sink.close()
    assert path.read_bytes() == b""


def test_it_is_a_sink(path: Path) -> None:
    """It has all methods of the protocol."""
    sink = JsonlSink(path)
    assert isinstance(sink, Sink)
    sink.close()
