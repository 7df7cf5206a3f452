"""What is kept of a run in memory."""

from itertools import pairwise

from esdmon.webpage import run_data
from esdmon.webpage.codes import CHARACTERS
from esdmon.webpage.run_data import RunData, Series
from tests.webpage.made import PHASES, alert_at, made_reports, report_at


def data_of(count: int | None = None) -> RunData:
    data = RunData("a")
    for report in made_reports()[:count]:
        data.add(report)
    return data


def test_the_map_is_that_of_the_reports() -> None:
    """Each phase of each layer at each step."""
    view = data_of().overview()
    rows = {layer["name"]: codes for layer, codes in zip(view["layers"], view["rows"], strict=True)}
    assert view["steps"] == list(range(10, 110, 10))
    assert rows == {name: "".join(CHARACTERS[each.code] for each in row) for name, row in PHASES.items()}


def test_a_layer_that_comes_later_was_not_read_before() -> None:
    """Nor was one that is waiting."""
    data = RunData("a")
    phases = {name: row[0] for name, row in PHASES.items()}
    data.add(report_at(10, {"out": phases["out"]}, waiting=["late"]))
    data.add(report_at(20, {"out": phases["out"], "late": phases["blocks.0.fc"], "new": phases["blocks.1.fc"]}))
    view = data.overview()
    assert [layer["name"] for layer in view["layers"]] == ["out", "late", "new"]
    assert view["rows"] == ["--", ".0", ".0"]


def test_lines_and_spectra_are_those_of_the_layer() -> None:
    """By name and step."""
    data = data_of()
    lines, frames = data.lines("blocks.1.fc"), data.frames("blocks.1.fc")
    assert lines["steps"] == frames["steps"] == list(range(10, 110, 10))
    assert lines["values"]["alpha"] == [3 + step / 1000 for step in lines["steps"]]
    assert [frame["phase"] for frame in frames["frames"]] == list("0122344555")
    assert data.lines("unknown")["steps"] == data.frames("unknown")["steps"] == []


def test_a_rewind_drops_what_came_after_it() -> None:
    """Of the map, the lines, the spectra and the alerts."""
    data = data_of()
    data.add_alert(alert_at(100, "out"))
    data.rewind(50)
    for report in made_reports(first=5)[:2]:
        data.add(report)
    assert (
        data.overview()["steps"] == data.lines("out")["steps"] == data.frames("out")["steps"] == list(range(10, 80, 10))
    )
    assert data.overview()["alerts"] == []


def test_memory_is_bounded() -> None:
    """Values are spread over the whole run, however long it is."""
    series = Series[int](50)
    for step in range(10_000):
        series.add(step, step)
        assert (series.steps[0], series.steps[-1]) == (0, step)
    assert 50 <= len(series.steps) <= 100
    assert series.steps == series.values
    assert {b - a for a, b in pairwise(series.steps[:-1])} == {128}
    series.rewind(5000)
    series.add(5001, 5001)
    series.add(5002, 5002)
    assert series.steps[-2:] == [4992, 5002]


def test_columns_are_bounded() -> None:
    """More than twice as many as are kept."""
    data, (report,) = RunData("a"), made_reports()[:1]
    for _ in range(4 * run_data.MAX_COLUMNS + 10):
        data.add(report, ())
    assert len(data._columns.steps) <= 4 * run_data.MAX_COLUMNS
    assert len(data.overview()["steps"]) <= run_data.MAX_COLUMNS


def test_layers_of_interest_come_first() -> None:
    """Those with an alert, then those that changed, then the others."""
    data = data_of()
    data.add_alert(alert_at(100, "out"))
    assert data.by_interest() == ["out", "blocks.0.fc", "blocks.1.fc", "blocks.10.fc", "blocks.2.fc"]
