"""The schedule of histograms and pictures, and the queue of pictures."""

from dataclasses import replace

import pytest

from esdmon.present.media import HISTOGRAM_INTERVAL, MAX_HISTOGRAMS, HistogramSchedule, Media, PictureQueue
from esdmon.records import Coverage, Esd, LayerReport, Report
from esdmon.spectrum import Phase

LAYER = LayerReport("fc", "ok", 10, N=64, M=64, esd=Esd(-2.0, 1.0, (1, 2, 3)))


def named(names: str, step: int = 10) -> list[LayerReport]:
    """Return a layer for each letter."""
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
    """Layers that were put in together keep their order."""
    queue = PictureQueue()
    queue.put_first(named("ab"))
    queue.put_first(named("cd", 20))
    assert len(queue) == 4
    assert drained(queue) == [("c", 20), ("d", 20), ("a", 10), ("b", 10)]
    assert queue.take() is None


def test_a_layer_that_is_queued_again_is_drawn_once_in_its_newer_state() -> None:
    """The queue is never longer than the model."""
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
    """Layers in the queue keep their place, and are drawn in the newer state."""
    queue = PictureQueue()
    queue.put_first(named("cb"))
    queue.put_last(named("abcd", 20))
    assert drained(queue) == [("c", 20), ("b", 20), ("a", 20), ("d", 20)]


def test_what_was_read_after_a_step_is_forgotten() -> None:
    """A reading at the same step may then be drawn again."""
    queue = PictureQueue()
    queue.put_first(named("a", 30))
    queue.take()
    queue.put_first([*named("b", 10), *named("c", 20)])
    queue.rewind(10)
    queue.put_last(named("a", 30))
    assert drained(queue) == [("b", 10), ("a", 30)]


def test_histograms_are_due_at_the_first_reading_and_every_fifth() -> None:
    schedule = HistogramSchedule()
    due = [[layer.name for layer in schedule.due(report("ab", step))] for step in range(1, 2 * HISTOGRAM_INTERVAL + 2)]
    assert due == [
        ["a", "b"],
        *[[]] * (HISTOGRAM_INTERVAL - 1),
        ["a", "b"],
        *[[]] * (HISTOGRAM_INTERVAL - 1),
        ["a", "b"],
    ]


def test_of_many_histograms_some_are_due_in_each_report() -> None:
    """The layers that are overdue the longest come first."""
    schedule = HistogramSchedule(most=MAX_HISTOGRAMS)
    names = "".join(chr(0x4E00 + k) for k in range(3 * MAX_HISTOGRAMS))
    due = ["".join(layer.name for layer in schedule.due(report(names, step))) for step in range(1, 5)]
    assert due == [names[:MAX_HISTOGRAMS], names[MAX_HISTOGRAMS : 2 * MAX_HISTOGRAMS], names[2 * MAX_HISTOGRAMS :], ""]


def test_a_histogram_is_due_where_the_phase_changes() -> None:
    """Even if the last one was taken at the reading before; the next one is due five readings later."""
    schedule = HistogramSchedule()
    phases = [Phase.RANDOM_LIKE, Phase.BULK_SPIKES, *[Phase.HEAVY_TAILED] * HISTOGRAM_INTERVAL, Phase.HEAVY_TAILED]
    due = []
    for step, phase in enumerate(phases):
        layers = tuple(replace(layer, phase=phase) for layer in named("a", step))
        due += [step for _ in schedule.due(Report(step, layers, Coverage(0, 0)))]
    assert due == [0, 1, 2, 2 + HISTOGRAM_INTERVAL]


def test_a_sink_that_is_rewound_shows_again_what_it_showed() -> None:
    """The schedule begins again: a phase change after the step is drawn when it is read again."""
    media = Media()
    changed = Report(20, tuple(replace(layer, phase=Phase.HEAVY_TAILED) for layer in named("a", 20)), Coverage(0, 0))
    for _ in range(2):
        assert [layer.name for layer in media.histograms(report("a", 10))] == ["a"]
        media.queue_changed(report("a", 10))
        media.queue_changed(changed)
        taken = media.take()
        assert taken is not None
        assert (taken.name, taken.step, len(media)) == ("a", 20, 0)
        media.rewind(0)


def test_without_matplotlib_no_picture_is_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue stays empty, so that a sink never tries to draw."""
    monkeypatch.setattr("esdmon.present.media.prepare_drawing", lambda: False)
    media = Media()
    media.queue_first(named("a"))
    media.queue_last(named("b"))
    assert media.take() is None
