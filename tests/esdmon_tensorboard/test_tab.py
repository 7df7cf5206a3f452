"""The routes of the tab, in a real TensorBoard with each of its back ends."""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from torch.utils.tensorboard import SummaryWriter

from esdmon.present.scalars import tag
from esdmon.webpage import contract
from esdmon.webpage.codes import CHARACTERS
from esdmon_tensorboard import TensorBoardSink
from tests.esdmon_tensorboard.server import Server, tensorboard, until
from tests.webpage.made import HOSTILE, PHASES, alert_at, made_reports, report_at, write

ALERTS = [alert_at(80, "blocks.1.fc"), alert_at(80, "blocks.0.fc", rule="norm_decay"), alert_at(90, "out")]


def write_charts_only(folder: Path) -> None:
    """Write what a run of an older version has: charts, and no tensors of the tab."""
    with closing(SummaryWriter(str(folder))) as writer:
        for report in made_reports():
            for layer in report:
                writer.add_scalar(tag("phase", layer.name), layer.phase.code, report.step)
                chart = "alpha_noise" if layer.name == "out" and report.step > 50 else "alpha"
                writer.add_scalar(tag(chart, layer.name), layer.measures["alpha"], report.step)
            layer = next(iter(report))
            assert layer.esd is not None
            writer.add_histogram_raw(
                tag("esd", layer.name),
                layer.esd.low,
                layer.esd.high,
                64,
                0,
                0,
                layer.esd.edges[1:],
                layer.esd.counts,
                report.step,
            )
        writer.add_text("esdmon_alert/rank_collapse/out", "**error, firing** out: what to do", 80)
        writer.add_text("esdmon_alert/adapter_growth/out", "**notice, firing** out: what to do", 90)


@pytest.fixture(scope="module")
def logdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write several runs."""
    folder = tmp_path_factory.mktemp("logs")
    write(folder / "whole", made_reports(), ALERTS)
    write(folder / "resumed", made_reports()[:8], ALERTS[:1])
    write(folder / "resumed", made_reports(first=5), rewind=50)
    write(folder / "hostile", [report_at(10, {HOSTILE: PHASES["out"][0], "../../etc/passwd": PHASES["out"][0]})])
    write_charts_only(folder / "charts")
    with closing(SummaryWriter(str(folder / "users"))) as writer:
        writer.add_scalar("loss", 1.0, 1)
    with closing(SummaryWriter(str(folder / "users_writer"))) as writer:
        sink = TensorBoardSink(writer)
        for report in made_reports():
            sink.write(report)
        sink.flush()
    return folder


@pytest.fixture(scope="module", params=[True, False], ids=["data-server", "python"])
def server(request: pytest.FixtureRequest, logdir: Path) -> Iterator[Server]:
    """Run a TensorBoard over them."""
    with tensorboard(logdir, fast=request.param) as running:
        until(lambda: len(running.get("runs")["runs"]) == 5)
        yield running


def rows_of(view: Any) -> dict[str, str]:
    return {layer["name"]: codes for layer, codes in zip(view["layers"], view["rows"], strict=True)}


def expected(phases: Any = PHASES) -> dict[str, str]:
    return {name: "".join(CHARACTERS[phase.code] for phase in row) for name, row in phases.items()}


@pytest.mark.parametrize("run", ["whole", "users_writer", "charts"])
def test_the_map_is_that_of_the_reports(server: Server, run: str) -> None:
    """From tensors in files of ours, in a writer of the user's, and from the charts of an older version."""
    view = server.overview(run, 100)
    assert view["steps"] == list(range(10, 110, 10))
    assert rows_of(view) == expected()


def test_a_user_without_esdmon_sees_no_run(server: Server) -> None:
    """Nor a layer of it."""
    assert set(server.get("runs")["runs"]) == {"whole", "resumed", "hostile", "charts", "users_writer"}


def test_alerts_of_one_step_are_all_there(server: Server) -> None:
    """TensorBoard keeps one value of a tag at a step."""
    view = server.overview("whole", 100)
    assert [(alert["step"], alert["rule"], alert["layer"]) for alert in view["alerts"]] == [
        (80, "rank_collapse", "blocks.1.fc"),
        (80, "norm_decay", "blocks.0.fc"),
        (90, "rank_collapse", "out"),
    ]
    assert view["now"]["title"] == "3 problems now, at step 100"


def test_a_resumed_run_has_each_step_once(server: Server) -> None:
    """What came after the step that it was resumed from is gone, with its alert."""
    view = server.overview("resumed", 100)
    assert view["steps"] == list(range(10, 110, 10))
    assert rows_of(view) == expected()
    assert view["alerts"] == []
    assert server.get("lines", run="resumed", layer="out")["steps"] == list(range(10, 110, 10))
    assert server.get("frames", run="resumed", layer="out")["steps"] == [10, 60]


def test_lines_are_those_of_the_layer(server: Server) -> None:
    """With all measures, or those that have charts."""
    for run, measures in (("whole", set(contract.MEASURES)), ("charts", {"alpha"})):
        found = server.get("lines", run=run, layer="blocks.10.fc")
        assert found["steps"] == list(range(10, 110, 10))
        assert found["values"]["alpha"] == pytest.approx([4 + step / 1000 for step in found["steps"]], rel=1e-3)
        defined = {name for name, values in found["values"].items() if any(value is not None for value in values)}
        assert defined <= measures
        assert "alpha" in defined


def test_alpha_of_noise_is_in_another_chart(server: Server) -> None:
    """Both are one line of the page, with the part that is not meaningful marked."""
    found = server.get("lines", run="charts", layer="out")
    assert found["steps"] == list(range(10, 110, 10))
    assert found["values"]["alpha"] == pytest.approx([6 + step / 1000 for step in found["steps"]], rel=1e-3)
    assert found["values"]["alpha_is_meaningful"] == [1] * 5 + [0] * 5


def test_spectra_are_those_of_the_layer(server: Server) -> None:
    """At the first reading, at every fifth and where the phase has changed."""
    found = server.get("frames", run="whole", layer="blocks.1.fc")
    phases = expected()["blocks.1.fc"]
    assert {10, 20, 30, 50, 60, 80} <= set(found["steps"])
    assert [frame["phase"] for frame in found["frames"]] == [phases[step // 10 - 1] for step in found["steps"]]
    assert {len(frame["counts"]) for frame in found["frames"]} == {64}
    charted = server.get("frames", run="charts", layer="blocks.0.fc")
    assert charted["steps"] == list(range(10, 110, 10))
    assert charted["frames"][0]["counts"] == found["frames"][0]["counts"]
    assert server.get("frames", run="charts", layer="out")["steps"] == []


def test_charts_have_their_alerts(server: Server) -> None:
    """Which are texts there."""
    found = [
        [alert[key] for key in ("rule", "layer", "severity", "state")]
        for alert in server.overview("charts", 100)["alerts"]
    ]
    assert found == [["rank_collapse", "out", "error", "firing"], ["adapter_growth", "out", "info", "firing"]]


@pytest.mark.parametrize("run", ["whole", "charts"])
def test_nothing_new_is_a_short_answer(server: Server, run: str) -> None:
    """A cursor that the run does not know brings all of it."""
    view = server.overview(run, 100)
    assert server.get("overview", run=run, after=view["cursor"]) == {
        "schema": 1,
        "cursor": view["cursor"],
        "unchanged": True,
    }
    for stale in ("90:1.0:0:5", "nonsense", "::::"):
        assert server.get("overview", run=run, after=stale)["steps"] == view["steps"]


def test_new_columns_come_alone(server: Server) -> None:
    """From the cursor on that the page had."""
    whole = server.overview("whole", 100)
    for point in range(3, 7):  # each column knows its own place
        step, _, rest = whole["cursor"].partition(":")
        assert (step, rest.split(":")[1:]) == ("100", ["3", "5"])
        part = server.get(
            "overview", run="whole", after=whole["cursor"].replace(f":{rest.split(':')[1]}:", f":{point}:")
        )
        assert (part.get("append"), part.get("steps")) == (True, []) if point != 3 else part["unchanged"]


def test_an_unknown_run_is_not_found(server: Server) -> None:
    """Nor is a path; an unknown layer has nothing."""
    for run in ("missing", "../whole", "", "users"):
        status, content, _ = server.fetch(f"data/plugin/esdmon/overview?run={run}")
        assert (status, b"has no readings of esdmon" in content) == (404, True)
    for path in ("../app.css", "static/app.js", "..%2fapp.css", "app.js/../../x"):
        assert server.fetch(f"data/plugin/esdmon/{path}")[0] == 404
    assert server.get("frames", run="whole", layer="../../etc/passwd") == {"schema": 1, "steps": [], "frames": []}


def test_names_are_keys_and_nothing_else(server: Server) -> None:
    """Whatever characters are in them."""
    view = server.overview("hostile", 10)
    assert [layer["name"] for layer in view["layers"]] == [HOSTILE, "../../etc/passwd"]
    for name in (HOSTILE, "../../etc/passwd"):
        assert server.get("lines", run="hostile", layer=name)["steps"] == [10]
        assert server.get("frames", run="hostile", layer=name)["steps"] == [10]


def test_the_page_is_served_with_its_types(server: Server) -> None:
    """A wrong type would not be run."""
    for path, start in (("index.js", "text/javascript"), ("app.css", "text/css")):
        status, content, kind = server.fetch(f"data/plugin/esdmon/{path}")
        assert (status, kind.startswith(start), len(content) > 1000) == (200, True, True)


def test_the_tab_appears_by_itself(server: Server) -> None:
    """Its name is short, since many tabs do not fit."""
    listing = json.loads(server.fetch("data/plugins_listing")[1])
    assert listing["esdmon"]["tab_name"] == "ESD"
    assert listing["esdmon"]["enabled"]
