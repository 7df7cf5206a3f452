"""The schedule of histograms and pictures, and the queue of pictures."""

from dataclasses import replace

from esdmon.present.media import HISTOGRAM_INTERVAL, MAX_HISTOGRAMS, MediaSchedule, PictureQueue
from esdmon.records import Coverage, Esd, LayerReport, Report

LAYER = LayerReport("fc", "ok", 10, N=64, M=64, esd=Esd(-2.0, 1.0, (1, 2, 3)))


def named(names: str, step: int = 10) -> list[LayerReport]:
    """A layer for each letter."""
    return [replace(LAYER, name=name, step=step) for name in names]


def drained(queue: PictureQueue) -> list[tuple[str, int]]:
    taken = []
    while (layer := queue.take()) is not None:
        taken.append((layer.name, layer.step))
    assert len(queue) == 0
    return taken


def report(names: str, step: int) -> Report:
    return Report(step, tuple(named(names, step)), Coverage(0, 0))


def test_what_was_queued_last_is_drawn_first() -> None:
    """And what was queued together in its own order."""
    queue = PictureQueue()
    queue.put_first(named("ab"))
    queue.put_first(named("cd", 20))
    assert len(queue) == 4
    assert drained(queue) == [("c", 20), ("d", 20), ("a", 10), ("b", 10)]
    assert queue.take() is None


def test_a_layer_that_is_queued_again_is_drawn_once_in_its_newer_state() -> None:
    """So that there are never more waiting than there are layers."""
    queue = PictureQueue()
    for step in range(10, 200, 10):
        queue.put_first(named("ab", step))
    queue.put_first(named("b", 200))
    assert drained(queue) == [("b", 200), ("a", 190)]


def test_a_state_that_was_drawn_is_not_drawn_again() -> None:
    queue = PictureQueue()
    queue.put_first(named("a"))
    assert drained(queue) == [("a", 10)]
    queue.put_first(named("ab"))
    queue.put_last(named("a"))
    assert drained(queue) == [("b", 10)]
    queue.put_first(named("a", 20))
    assert drained(queue) == [("a", 20)]


def test_a_layer_without_a_histogram_is_not_queued() -> None:
    queue = PictureQueue()
    queue.put_first([replace(LAYER, esd=None)])
    queue.put_last([replace(LAYER, esd=None)])
    assert drained(queue) == []


def test_what_is_queued_last_stands_behind_what_waits() -> None:
    """What waits already keeps its place, and is drawn in the newer state."""
    queue = PictureQueue()
    queue.put_first(named("cb"))
    queue.put_last(named("abcd", 20))
    assert drained(queue) == [("c", 20), ("b", 20), ("a", 20), ("d", 20)]


def test_what_was_read_after_a_step_is_forgotten() -> None:
    """Then it may be drawn again, at the same step."""
    queue = PictureQueue()
    queue.put_first(named("a", 30))
    queue.take()
    queue.put_first([*named("b", 10), *named("c", 20)])
    queue.rewind(10)
    queue.put_last(named("a", 30))
    assert drained(queue) == [("b", 10), ("a", 30)]


def test_histograms_are_due_at_the_first_reading_and_every_fifth() -> None:
    schedule = MediaSchedule()
    due = [
        [layer.name for layer in schedule.histograms(report("ab", step))]
        for step in range(1, 2 * HISTOGRAM_INTERVAL + 2)
    ]
    assert due == [
        ["a", "b"],
        *[[]] * (HISTOGRAM_INTERVAL - 1),
        ["a", "b"],
        *[[]] * (HISTOGRAM_INTERVAL - 1),
        ["a", "b"],
    ]


def test_of_many_histograms_some_are_due_in_each_report() -> None:
    """Those first that have waited longest."""
    schedule = MediaSchedule()
    names = "".join(chr(0x4E00 + k) for k in range(3 * MAX_HISTOGRAMS))
    due = ["".join(layer.name for layer in schedule.histograms(report(names, step))) for step in range(1, 5)]
    assert due == [names[:MAX_HISTOGRAMS], names[MAX_HISTOGRAMS : 2 * MAX_HISTOGRAMS], names[2 * MAX_HISTOGRAMS :], ""]
