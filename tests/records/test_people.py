"""What people see of a record: `repr`, `print`, and HTML in a notebook."""

import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import given

from esdmon.errors import MissingExtraError
from esdmon.records import Alert, LayerFinding, LayerReport, Report
from esdmon.records.colours import PHASE_HEX, SEVERITY_HEX
from esdmon.spectrum import Phase
from tests.records.test_report import ALERTS, BROKEN, GOOD, LAYERS, NOISE, report_of

FIRED = Alert("a", "norm_decay", "warning", "firing", "fc1", ("fc1",), step=2, since=1, message="fc1: norm_decay: …")
HOSTILE = '</td></table><script>alert("x")</script><img src=x onerror=y> & <b>'
TAGS = {"div", "b", "span", "table", "thead", "tbody", "tr", "td", "th", "details", "summary"}


class Parser(HTMLParser):
    """The tags, attributes and texts of a page, whose tags must be closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_report_is_a_table() -> None:
    """Counts of phases, and a row for each layer; notes are left to `print`."""
    lines = repr(report_of(GOOD, NOISE, BROKEN)).splitlines()
    assert lines[0] == "step 200, 3 layers: 1 heavy-tailed, 1 random-like, 1 nonfinite"
    assert [line.split()[0] for line in lines[1:]] == ["layer", "fc1", "fc2", "fc3"]
    assert repr(report_of()).splitlines()[0] == "step 200, no layers"


def test_a_report_of_a_large_model_is_cut() -> None:
    """To its first and last layers, with the number of those that are left out."""
    layers = [replace(GOOD, name=f"h.{k}.fc") for k in range(180)]
    text = repr(report_of(*layers))
    assert len(text.splitlines()) < 25
    assert "h.9.fc" in text
    assert "h.10.fc" not in text
    assert "… 160 more layers" in text
    assert "h.179.fc" in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_layer_is_one_line() -> None:
    assert repr(GOOD) == (
        "<LayerReport fc1: 1024 × 384, heavy-tailed, alpha 2.50 ± 0.25, soft rank 0.25, 30 spikes, step 200>"
    )
    assert "alpha (2.50 ± 0.25)" in repr(NOISE)
    assert repr(BROKEN) == "<LayerReport fc3: nonfinite, step 200: 5 of 6 elements are NaN or infinite>"


def test_a_layer_is_printed_with_all_measures() -> None:
    """Beside those of noise, below the evidence for its phase."""
    layer = replace(GOOD, explanation="Its tail " + "is long, and " * 20, nulls={"alpha": 7.5}, phase_confidence=0.5)
    text = str(layer)
    assert text.startswith("fc1, step 200: 1024 × 384, heavy-tailed (confidence 0.50)\nIts tail is long")
    assert "alpha         2.50 ± 0.25            7.5" in text
    assert max(map(len, text.splitlines())) <= 80
    assert str(BROKEN) == "fc3, step 200: nonfinite\n5 of 6 elements are NaN or infinite"


def test_an_alert_is_one_line() -> None:
    assert str(FIRED) == "step 2, warning, firing: fc1: norm_decay: …"
    assert repr(FIRED) == "<Alert step 2, warning, firing: fc1: norm_decay: …>"


def test_an_alert_of_severity_info_is_called_a_notice() -> None:
    notice = replace(FIRED, severity="info")
    assert str(notice) == "step 2, notice, firing: fc1: norm_decay: …"
    assert "notice, firing" in Parser(notice._repr_html_()).text
    assert notice.to_record()["severity"] == "info"


@given(LAYERS, ALERTS)
def test_notebooks_show_any_record(layer: LayerReport, alert: Alert) -> None:
    """Names and messages are text, whatever they contain."""
    hostile = replace(layer, name=HOSTILE, reason=HOSTILE, explanation=HOSTILE, measures={HOSTILE: 1.0})
    for record in (layer, hostile, alert, replace(alert, message=HOSTILE), report_of(layer, hostile)):
        page = Parser(record._repr_html_())
        assert page.tags <= TAGS
        assert page.attributes <= {"style"}
        if record is hostile or isinstance(record, Report):
            assert HOSTILE in page.text


def test_notebooks_show_what_matters() -> None:
    """The phase beside its colour, alpha in parentheses, notes, and what is not watched."""
    page = report_of(GOOD, NOISE, BROKEN)._repr_html_()
    text = Parser(page).text
    assert PHASE_HEX[Phase.HEAVY_TAILED] in page
    assert SEVERITY_HEX["error"] in page
    for part in ("heavy-tailed", "(2.50 ± 0.25)", "fc3: 5 of 6 elements", "watching 75.0%", "fc1.bias (vectors)"):
        assert part in text
    parts = (LayerFinding("fc1", 1, HOSTILE), LayerFinding("fc2", 1, "norm 3"))
    grouped = Parser(replace(FIRED, layers=("fc1", "fc2"), by_layer=parts)._repr_html_())
    assert "warning, firing" in grouped.text
    assert "fc2 since step 1: norm 3" in grouped.text
    assert grouped.tags <= TAGS
    assert "color:" not in page.replace("solid", "")


def test_every_phase_and_severity_has_a_colour_for_both_backgrounds() -> None:
    """Its contrast to a white page and to a dark one is above 1.9."""

    def luminance(colour: str) -> float:
        parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    assert set(PHASE_HEX) == set(Phase)
    assert len(set(PHASE_HEX.values())) == len(Phase)
    for colour in (*PHASE_HEX.values(), *SEVERITY_HEX.values()):
        assert 1.05 / (luminance(colour) + 0.05) > 1.9
        assert (luminance(colour) + 0.05) / (luminance("#111111") + 0.05) > 1.9


def test_a_report_becomes_a_table_of_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the columns of the records; without pandas the error says what to install."""
    report = report_of(GOOD, NOISE)
    frame = report.to_dataframe()
    assert list(frame["name"]) == ["fc1", "fc2"]
    assert list(frame.columns) == list(report.to_records()[0])
    assert frame["alpha"].mean() == 2.5
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match=r'to_dataframe\(\) needs the package pandas: .*"esdmon\[notebook\]"'):
        report.to_dataframe()
