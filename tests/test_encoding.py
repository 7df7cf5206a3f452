"""What is printed can be encoded by standard output, and a table keeps its columns."""

import io
import sys
from dataclasses import replace

import pytest

import esdmon
from esdmon.encoding import encodable
from esdmon.records import Alert, Coverage, LayerReport, Report, Skipped
from esdmon.sinks import JsonlSink
from esdmon.spectrum import Phase

LAYER = LayerReport(
    "blocks.0.größe.層",
    "ok",
    1,
    N=256,
    M=64,
    phase=Phase.HEAVY_TAILED,
    explanation="λmax ≤ 3 σ²: no edge.",
    measures={"alpha": 2.5, "alpha_stderr": 0.1, "mp_soft_rank": 0.5, "n_spikes": 3.0},
)
REPORT = Report(1, (LAYER, replace(LAYER, name="fc", measures={})), Coverage(0, 9, (Skipped("β", 9, "vectors"),)))
ALERT = Alert("a", "rule", "warning", "firing", "fc", ("fc",), 1, 1, "‖W‖ rose by a factor ≥ 3")


def printed_to(encoding: str, shown: object, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return what `print` writes to a standard output of that encoding, which raises at what it does not have."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, errors="strict"))
    print(shown)  # noqa: T201
    sys.stdout.flush()
    return raw.getvalue().decode(encoding)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437", "latin-1", "utf-8"])
@pytest.mark.parametrize("shown", [REPORT, REPORT.coverage, LAYER, ALERT], ids=lambda shown: type(shown).__name__)
def test_records_can_be_printed(shown: object, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is raised, and UTF-8 loses nothing."""
    found = printed_to(encoding, shown, monkeypatch)
    monkeypatch.undo()
    assert found == f"{encodable(str(shown), encoding)}\n"


@pytest.mark.parametrize("shown", [REPORT, LAYER, ALERT], ids=lambda shown: type(shown).__name__)
def test_what_a_list_shows_of_records_can_be_printed(shown: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """`print([report])` takes their `repr`."""
    assert printed_to("ascii", [shown], monkeypatch)


def test_a_table_keeps_its_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each replacement in a cell is as wide as what it stands for."""
    lines = printed_to("ascii", REPORT, monkeypatch).splitlines()[:3]
    assert [len(line) for line in lines] == [len(line) for line in REPORT.text.splitlines()[:3]]
    assert lines[1].split() == ["blocks.0.gro?e.?", "256", "x", "64", "heavy-tailed", "(2.50", "+-0.10)", "0.50", "3"]


def test_the_text_of_a_report_has_all_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a file, whatever standard output can encode."""
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert "256 × 64" in REPORT.text
    assert "256 x 64" in str(REPORT)


@pytest.mark.parametrize("stream", [None, io.StringIO(), object()], ids=["none", "StringIO", "object"])
def test_a_standard_output_without_an_encoding_gets_all(stream: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a notebook's, or none at all."""
    monkeypatch.setattr(sys, "stdout", stream)
    assert "256 × 64" in str(REPORT)


def test_an_unknown_encoding_changes_nothing() -> None:
    """Of a stream that is a host's own."""
    assert encodable("2 × 3", "no such encoding") == "2 × 3"


def test_a_run_can_be_printed(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its path may have any characters."""
    path = f"{tmp_path}/größe.jsonl"
    sink = JsonlSink(path)
    sink.write(REPORT)
    sink.close()
    assert printed_to("ascii", esdmon.load(path), monkeypatch).startswith(f"{tmp_path}/gro?e.jsonl: 1 reports")
