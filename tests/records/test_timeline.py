"""The course of a run, and the lines that end it."""

import json
from dataclasses import replace

from esdmon.records import Alert, LayerReport, Report
from esdmon.records.outcome import alerts_line, changes, outcome, path_text
from esdmon.records.timeline import Stage, Timeline
from esdmon.spectrum import Phase
from tests.fakes import timeline_of
from tests.records.test_report import BROKEN, GOOD, report_of

PHASES = list(Phase)


def at(step: int, **phases: Phase) -> Report:
    """Return a report on layers by name."""
    layers = (replace(GOOD, name=name, step=step, phase=phase) for name, phase in phases.items())
    return replace(report_of(*layers), step=step)


def alert(step: int, state: str, *layers: str, rule: str = "norm_decay", severity: str = "warning") -> Alert:
    return Alert(rule, rule, severity, state, layers[0], layers, step=step, since=step - 1, message="")  # type: ignore[arg-type]


def test_a_layer_has_a_stage_for_each_change() -> None:
    """A reading that is repeated, of a layer that is not due, is none."""
    first = at(1, a=Phase.RANDOM_LIKE, b=Phase.RANDOM_LIKE)
    second = replace(first, step=2)
    third = replace(report_of(*at(3, a=Phase.BULK_SPIKES), replace(BROKEN, name="b", step=3)), step=3)
    timeline = timeline_of(first, second, third)
    assert timeline.stages["a"] == [Stage(1, "random-like"), Stage(3, "bulk+spikes")]
    assert timeline.stages["b"] == [Stage(1, "random-like"), Stage(3, "nonfinite")]


def test_an_alert_is_one_episode_until_it_ends() -> None:
    """Also one that grows; one that fires again is another."""
    events = [alert(1, "firing", "a"), alert(2, "firing", "a", "b"), alert(3, "resolved", "a", "b")]
    timeline = timeline_of(
        *events, alert(7, "firing", "a"), alert(8, "firing", "c", rule="rank_collapse", severity="error")
    )
    first, second, third = timeline.episodes
    assert (first.began, first.ended, first.alert.layers) == (1, 3, ("a", "b"))
    assert (second.began, second.ended) == (7, None)
    assert timeline.firing == [third, second]


def test_what_followed_the_step_of_a_resume_is_forgotten() -> None:
    """A copy is not changed."""
    begun = alert(1, "firing", "a")
    timeline = timeline_of(at(1, a=Phase.RANDOM_LIKE), begun, at(5, a=Phase.BULK_DECAY), alert(5, "resolved", "a"))
    copied = timeline.copy()
    timeline.rewind(3)
    assert [(episode.began, episode.ended) for episode in timeline.episodes] == [(1, None)]
    assert timeline.stages == {"a": [Stage(1, "random-like")]}
    assert [(episode.began, episode.ended) for episode in copied.episodes] == [(1, 5)]
    assert len(copied.stages["a"]) == 2


def test_a_saved_course_goes_on() -> None:
    """Through JSON, and with the alerts, which a monitor saves by itself."""
    timeline = timeline_of(at(1, a=Phase.RANDOM_LIKE), alert(1, "firing", "a"), at(5, a=Phase.BULK_DECAY))
    resumed = Timeline()
    restore = resumed.prepare(json.loads(json.dumps(timeline.state_dict())))
    assert resumed.stages == {}
    restore()
    resumed.rewind(4, timeline.alerts)
    resumed.take(at(6, a=Phase.BULK_DECAY))
    assert path_text(resumed.stages["a"]) == "random-like → bulk-decay (6)"
    assert resumed.episodes == timeline.episodes


def test_the_outcome_is_short() -> None:
    """Layers by phase, what changed, alerts with the span of the fault, those that fire first."""
    timeline = timeline_of(
        at(20, fc1=Phase.RANDOM_LIKE, fc2=Phase.RANDOM_LIKE, fc3=Phase.RANDOM_LIKE),
        alert(30, "firing", "fc1", "fc2"),
        alert(35, "firing", "fc3", rule="dead_layer", severity="info"),
        at(40, fc1=Phase.BULK_SPIKES, fc2=Phase.BULK_SPIKES, fc3=Phase.RANDOM_LIKE),
        alert(40, "resolved", "fc1", "fc2"),
        alert(60, "firing", "fc1", rule="rank_collapse", severity="error"),
        at(60, fc1=Phase.RANK_COLLAPSE, fc2=Phase.BULK_SPIKES, fc3=Phase.RANDOM_LIKE),
    )
    alerts = ["error rank_collapse in fc1 since step 59", "warning norm_decay in fc1, fc2 from step 29 to 40"]
    assert outcome(timeline) == [
        "after 60 steps, 3 layers: 1 rank-collapse, 1 bulk+spikes, 1 random-like",
        "fc1: random-like → bulk+spikes (40) → rank-collapse (60)",
        "fc2: random-like → bulk+spikes (40)",
        f"alerts: {'; '.join(alerts)}; notice dead_layer in fc3 since step 34",
    ]
    sparse = replace(alert(300, "firing", "fc1"), since=200, after=100)
    line = "alerts: warning norm_decay in fc1 since step 200 (not yet at step 100)"
    assert outcome(timeline_of(at(300, fc1=Phase.RANDOM_LIKE), sparse))[-1] == line
    assert outcome(Timeline()) == []
    assert outcome(timeline_of(at(1, a=Phase.RANDOM_LIKE)))[1:] == ["alerts: none"]


def test_the_outcome_says_where_the_run_went_on_after_the_last_report() -> None:
    """A run that ended at that report, or whose end is not known, has its steps alone."""
    timeline = timeline_of(at(20, a=Phase.RANDOM_LIKE))
    assert outcome(timeline, steps=31)[0] == "after 31 steps (last report: step 20), 1 layer: 1 random-like"
    assert outcome(timeline, steps=20)[0] == outcome(timeline)[0] == "after 20 steps, 1 layer: 1 random-like"


def test_the_outcome_of_a_large_model_is_as_short() -> None:
    """Layers with the same path share a line; the worst paths are spelled out, and long ones are cut."""
    layers = {f"h.{k}": PHASES[k % 5] for k in range(100)}
    events = [at(1, **dict.fromkeys(layers, Phase.UNCLASSIFIED)), at(2, **layers)]
    events += [at(3 + k, flaps=PHASES[k % 2]) for k in range(50)]
    lines = changes(timeline_of(*events))
    assert lines == [
        "h.4, h.9, h.14 and 17 more: unclassified → heavy-tailed (2)",
        "h.3, h.8, h.13 and 17 more: unclassified → bulk-decay (2)",
        "h.2, h.7, h.12 and 17 more: unclassified → bulk+spikes (2)",
        "41 more changed phase",
    ]
    (flaps,) = changes(timeline_of(*events[2:]))
    ends = "random-like (49) → bleeding-out (50) → random-like (51) → bleeding-out (52)"
    assert flaps == f"flaps: random-like → … 45 changes … → {ends}"


def test_many_alerts_are_counted() -> None:
    """The worst are named, those that still fire before those that have ended, and notices last."""
    events = [alert(k, "firing", "a", rule=f"rule{k}", severity="error" if k == 7 else "warning") for k in range(1, 9)]
    ended = [alert(9, "resolved", "a", rule=f"rule{k}") for k in (1, 7)]
    notice = alert(9, "firing", "a", rule="dead_layer", severity="info")
    named = "; ".join(f"warning rule{k} in a since step {k - 1}" for k in range(2, 6))
    assert alerts_line(timeline_of(notice, *events, *ended).episodes) == f"alerts: {named}; 4 more; 1 more notice"
    assert alerts_line(timeline_of(notice).episodes) == "alerts: notice dead_layer in a since step 8"


def test_a_layer_that_cannot_be_read_any_more_comes_first() -> None:
    broken: LayerReport = replace(BROKEN, name="b", step=2)
    first = at(1, a=Phase.RANDOM_LIKE, b=Phase.RANDOM_LIKE)
    second = replace(report_of(*at(2, a=Phase.RANK_COLLAPSE), broken), step=2)
    assert [line.partition(":")[0] for line in changes(timeline_of(first, second))] == ["b", "a"]
