"""The course of a run in a few lines of plain text."""

from collections.abc import Iterable, Sequence

from esdmon.records.text import count, counted
from esdmon.records.timeline import SEVERITIES, Episode, Stage, Timeline
from esdmon.spectrum import Phase

_PATHS = 3  # paths of phases that are spelled out
_EPISODES = 4  # alerts that are named
_STAGES = 6  # stages of a path that are spelled out
_CODES = {phase.value: phase.code for phase in Phase}


def outcome(timeline: Timeline) -> list[str]:
    """Return lines on the layers by phase, on what has changed, and on the alerts; nothing without a report."""
    report = timeline.last
    if report is None:
        return []
    lines = [f"after {report.step} steps, {count(len(report), 'layer')}: {counted(report)}"]
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
    """Return one line on all alerts: those that fire first, then by severity; notices are only counted."""
    serious = [episode for episode in episodes if episode.alert.severity != "info"]
    serious.sort(key=lambda episode: (episode.ended is not None, SEVERITIES.index(episode.alert.severity)))
    texts = [_episode_text(episode) for episode in serious[:_EPISODES]]
    more, notices = len(serious) - len(texts), len(episodes) - len(serious)
    texts += [f"{more} more"] if more else []
    texts += [count(notices, "notice")] if notices else []
    return f"alerts: {'; '.join(texts) or 'none'}"


def named(names: Iterable[str], *, most: int = 3) -> str:
    """Return `a, b, c and 4 more`."""
    shown = list(names)
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    return f"{', '.join(shown[:most])}{more}"


def _episode_text(episode: Episode) -> str:
    where = f" in {named(episode.alert.layers)}" if episode.alert.layers else ""
    span = f"since step {episode.began}" if episode.ended is None else f"from step {episode.began} to {episode.ended}"
    return f"{episode.alert.rule}{where} {span}"
