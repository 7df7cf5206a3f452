"""The overview: a picture of the phases of all layers, and the text on alerts."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from esdmon.present import overview
from esdmon.present.overview import Overview, alert_text, draw_overview
from esdmon.records import Alert, Coverage, LayerFinding, LayerReport, Report
from esdmon.records.colours import PHASE_HEX, SEVERITY_HEX
from esdmon.records.timeline import Timeline
from esdmon.spectrum import Phase
from tests.fakes import timeline_of

ALERT = Alert("r:b", "r", "error", "firing", "b", ("b",), 30, 20, "b: it holds")


def report(step: int, **phases: Phase) -> Report:
    layers = tuple(LayerReport(name, "ok", step, N=64, M=64, phase=phase) for name, phase in phases.items())
    return Report(step, layers, Coverage(0, 0))


def columns(picture: NDArray[np.uint8], colour: str) -> list[int]:
    """Return the columns of the map in which a colour is."""
    rgb = [int(colour[k : k + 2], 16) for k in (1, 3, 5)]
    return np.flatnonzero((picture[70:275, 125:] == rgb).all(axis=2).any(axis=0)).tolist()


def test_a_phase_is_drawn_from_its_first_step_to_its_last() -> None:
    """From left to right; the legend has the phases that occur."""
    phases = [Phase.RANDOM_LIKE, Phase.RANDOM_LIKE, Phase.HEAVY_TAILED, Phase.HEAVY_TAILED]
    drawn = draw_overview(timeline_of(*(report(10 * k, a=phase) for k, phase in enumerate(phases, start=1))))
    assert drawn.shape == (360, 480, 3)
    before, after = columns(drawn, PHASE_HEX[Phase.RANDOM_LIKE]), columns(drawn, PHASE_HEX[Phase.HEAVY_TAILED])
    assert max(before) < min(after)
    assert len(before) == pytest.approx(2 * len(after), rel=0.1)
    assert columns(drawn, PHASE_HEX[Phase.RANK_COLLAPSE]) == []


def test_what_the_last_reading_has_found_can_be_seen() -> None:
    """However long the run is."""
    drawn = draw_overview(timeline_of(report(1, a=Phase.RANDOM_LIKE), report(10**6, a=Phase.RANK_COLLAPSE)))
    assert len(columns(drawn, PHASE_HEX[Phase.RANK_COLLAPSE])) >= 5


@pytest.mark.parametrize("n_layers", [3, 200])
def test_an_alert_is_marked(n_layers: int) -> None:
    """Above the map at the step at which it began, in the headline and at its row; a notice not at its row."""
    phases = {f"h.{k}.fc": Phase.RANDOM_LIKE for k in range(n_layers - 1)} | {"b": Phase.RANDOM_LIKE}
    course = [report(step, **phases) for step in (10, 30, 50)]
    quiet = draw_overview(timeline_of(*course))
    assert columns(quiet, SEVERITY_HEX["error"]) == []
    loud = draw_overview(timeline_of(*course, ALERT))
    assert columns(loud, SEVERITY_HEX["error"])
    assert not np.array_equal(loud[:60], quiet[:60])
    ended = draw_overview(timeline_of(*course, ALERT, replace(ALERT, state="resolved", step=50)))
    assert np.array_equal(ended[:20], quiet[:20])
    notice = draw_overview(timeline_of(*course, replace(ALERT, severity="info")))
    assert not np.array_equal(notice[:60], quiet[:60])


def test_names_with_the_same_end_differ_in_the_picture() -> None:
    """Where the ends that fit are alike, the names beside the map show what differs."""
    names = [f"blocks.{k}.self_attention.in_proj_weight/q" for k in range(4)]
    drawn = draw_overview(timeline_of(report(10, **dict.fromkeys(names, Phase.RANDOM_LIKE))))
    labels = [drawn[78 + 48 * k : 78 + 48 * (k + 1), :125].tobytes() for k in range(4)]
    assert len(set(labels)) == 4


@pytest.mark.parametrize("layers", [("b",), ("h.0.a_long_name_of_a_block.with_a_long_name_of_a_layer",), ("b",) * 12])
def test_the_headline_begins_with_the_rule(layers: tuple[str, ...]) -> None:
    """Whatever the layers are called: the name is cut, or the step at which nothing was found is left out."""
    course = report(10, b=Phase.RANDOM_LIKE)
    long = replace(ALERT, rule="norm_explosion", layer=layers[0], layers=layers, since=12345, after=12300)
    wide = draw_overview(timeline_of(course, long))
    short = draw_overview(timeline_of(course, replace(long, layer="b", layers=("b",), after=None)))
    rule = np.s_[24:44, 8:120]
    assert np.array_equal(wide[rule], short[rule])


@pytest.mark.parametrize("name", ["größe·层\n", "x" * 300, "", "<b>&amp;"])
@pytest.mark.parametrize("n_layers", [1, 40])
def test_any_name_is_drawn(name: str, n_layers: int) -> None:
    phases = {name: Phase.BULK_DECAY} | {f"h.{k}": Phase.BULK_SPIKES for k in range(1, n_layers)}
    course = timeline_of(report(10, **phases), replace(ALERT, layer=name, layers=(name,)))
    assert columns(draw_overview(course), PHASE_HEX[Phase.BULK_DECAY])


def test_layers_without_a_phase_and_runs_without_a_layer_are_drawn() -> None:
    failed = LayerReport("a", "nonfinite", 10, "NaN")
    assert columns(draw_overview(timeline_of(Report(10, (failed,), Coverage(0, 0)))), "#111111")
    assert draw_overview(Timeline()).shape == (360, 480, 3)


def test_it_is_drawn_again_ever_more_rarely() -> None:
    """At each of the first readings, at an alert, and in a long run at a fiftieth of the readings."""
    picture, drawn = Overview(), []
    for step in range(1, 1001):
        picture.take(report(step, a=Phase.RANDOM_LIKE))
        if picture.is_due:
            drawn.append(step)
            picture.draw()
    assert drawn[:99] == list(range(1, 100))
    assert 200 < len(drawn) < 300
    assert not picture.is_due
    picture.alert(ALERT)
    assert picture.is_due
    picture.draw()
    picture.make_due()
    assert not picture.is_due


def test_what_came_after_a_step_is_forgotten() -> None:
    picture = Overview()
    picture.take(report(10, a=Phase.RANDOM_LIKE))
    before = picture.draw()
    picture.take(report(20, a=Phase.HEAVY_TAILED))
    picture.alert(ALERT)
    picture.rewind(10)
    assert not picture.is_due
    picture.take(report(10, a=Phase.RANDOM_LIKE))
    assert np.array_equal(picture.draw(), before)


def test_a_resumed_run_has_one_picture() -> None:
    """What happened before is drawn in the new process too."""
    whole, resumed = Overview(), Overview()
    whole.take(report(10, a=Phase.RANDOM_LIKE))
    whole.alert(ALERT)
    resumed.resume(whole.timeline.copy())
    assert not resumed.is_due
    for picture in (whole, resumed):
        picture.take(report(20, a=Phase.HEAVY_TAILED))
        assert picture.is_due
    assert np.array_equal(resumed.draw(), whole.draw())


def test_without_pillow_it_is_never_due(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: Timeline) -> None:
        raise ImportError("PIL")

    monkeypatch.setattr(overview, "draw_overview", missing)
    picture = Overview()
    picture.take(report(10, a=Phase.RANDOM_LIKE))
    assert not picture.is_due


def test_alerts_in_words() -> None:
    """The worst first, with nothing of a name read as Markdown."""
    milder = replace(ALERT, id="s:a", severity="warning", message="a_b*: slow")
    parts = (LayerFinding("b", 20, "x"), LayerFinding("c_*", 25, "y"))
    several = alert_text(timeline_of(replace(ALERT, layers=("b", "c_*"), by_layer=parts))).splitlines()
    assert several[3:] == ["    - b since step 20: x", r"    - c\_\* since step 25: y"]
    assert alert_text(timeline_of(milder, ALERT)).splitlines() == [
        "**2 alerts fire now**",
        "",
        "- **error**, since step 20: b: it holds",
        r"- **warning**, since step 20: a\_b\*: slow",
    ]
    notice = alert_text(timeline_of(replace(ALERT, severity="info"))).splitlines()
    assert notice == ["**No alert fires, 1 notice now**", "", "- **notice**, since step 20: b: it holds"]
    assert alert_text(Timeline()).splitlines()[0] == "**No alert fires now**"
