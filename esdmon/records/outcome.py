"""Describe the course of a run in a few lines of plain text."""

from collections.abc import Sequence

from esdmon.records.alert import Alert, not_at, severity_word
from esdmon.records.text import count, counted, named
from esdmon.records.timeline import SEVERITIES, Episode, Stage, Timeline
from esdmon.spectrum import Phase

_PATHS = 3  # paths of phases that are described
_EPISODES = 4  # alerts that are listed by name
_STAGES = 6  # stages of a path that are listed
_CODES = {phase.value: phase.code for phase in Phase}


def outcome(timeline: Timeline, *, steps: int | None = None) -> list[str]:
    """Return lines on the layers by phase, on changes of phase, and on the alerts; nothing without a report.

    Args:
        timeline: the course of the run.
        steps: steps of the run, which may go on after its last report; by default the step of that report.
    """
    report = timeline.last
    if report is None:
        return []
    ran = count(report.step, "step")
    if steps is not None and steps > report.step:
        ran = f"{count(steps, 'step')} (last report: step {report.step})"
    lines = [f"after {ran}, {count(len(report), 'layer')}: {counted(report)}"]
    return [*lines, *changes(timeline), alerts_line(timeline.episodes)]


def changes(timeline: Timeline) -> list[str]:
    """Return a line for each of a few paths through the phases, those nearest to rank-collapse first."""
    paths: dict[tuple[str, ...], list[str]] = {}
    for name, stages in timeline.stages.items():
        if len(stages) > 1:
            paths.setdefault(tuple(stage.state for stage in stages), []).append(name)
    # A status other than ok is worse than any phase.
    ordered = sorted(paths.items(), key=lambda path: -max(_CODES.get(state, len(_CODES)) for state in path[0]))
    lines = [f"{named(names)}: {path_text(timeline.stages[names[0]])}" for _, names in ordered[:_PATHS]]
    more = sum(len(names) for _, names in ordered[_PATHS:])
    return [*lines, f"{more} more changed phase"] if more else lines


def path_text(stages: Sequence[Stage]) -> str:
    """Return `random-like → bulk+spikes (step 60) → …`; of many stages the first and the last ones."""
    texts = [stages[0].state, *(f"{stage.state} ({stage.step})" for stage in stages[1:])]
    if len(texts) > _STAGES:
        texts = [texts[0], f"… {len(texts) - _STAGES + 1} changes …", *texts[2 - _STAGES :]]
    return " → ".join(texts)


def alerts_line(episodes: Sequence[Episode]) -> str:
    """Return one line on all alerts: those that fire before those that have ended, the worst first, notices last."""
    ordered = sorted(
        episodes,
        key=lambda each: (_is_notice(each), each.ended is not None, SEVERITIES.index(each.alert.severity)),
    )
    texts = [
        f"{severity_word(each.alert.severity)} {episode_text(each)}{_not_at(each)}" for each in ordered[:_EPISODES]
    ]
    notices = sum(map(_is_notice, ordered[_EPISODES:]))
    more = len(ordered) - len(texts) - notices
    texts += [f"{more} more"] if more else []
    texts += [count(notices, "more notice")] if notices else []
    return f"alerts: {'; '.join(texts) or 'none'}"


def _not_at(episode: Episode) -> str:
    """Return the last check without a finding before a firing alert began, as text."""
    return "" if episode.ended is not None else not_at(episode.alert.since, episode.alert.after)


def _is_notice(episode: Episode) -> bool:
    return episode.alert.severity == "info"


def episode_text(episode: Episode) -> str:
    """Return rule, layers and span of an alert."""
    where = f" in {named(episode.alert.layers)}" if episode.alert.layers else ""
    since = episode.alert.since  # beginning of the fault; the rule fired some checks later
    span = f"since step {since}" if episode.ended is None else f"from step {since} to {episode.ended}"
    return f"{episode.alert.rule}{where} {span}"


def without_prefix(alert: Alert) -> str:
    """Return the message of an alert without the layers and the rule before it."""
    return alert.message.partition(f"{alert.rule}: ")[2] or alert.message
