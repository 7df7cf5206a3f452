"""What is drawn of a layer, and which layers are."""

from dataclasses import replace

from esdmon.picture import Gallery
from esdmon.records import Esd, LayerReport

LAYER = LayerReport("fc", "ok", 10, N=64, M=64, esd=Esd(-2.0, 1.0, (1, 2, 3)))


def named(names: str, step: int = 10) -> list[LayerReport]:
    """A layer for each letter."""
    return [replace(LAYER, name=name, step=step) for name in names]


def drained(gallery: Gallery) -> list[tuple[str, int]]:
    taken = []
    while (layer := gallery.take()) is not None:
        taken.append((layer.name, layer.step))
    assert len(gallery) == 0
    return taken


def test_what_was_queued_last_is_drawn_first() -> None:
    """And what was queued together in its own order."""
    gallery = Gallery()
    gallery.queue(named("ab"))
    gallery.queue(named("cd", 20))
    assert len(gallery) == 4
    assert drained(gallery) == [("c", 20), ("d", 20), ("a", 10), ("b", 10)]
    assert gallery.take() is None


def test_a_layer_that_is_queued_again_is_drawn_once_in_its_newer_state() -> None:
    """So that there are never more waiting than there are layers."""
    gallery = Gallery()
    for step in range(10, 200, 10):
        gallery.queue(named("ab", step))
    gallery.queue(named("b", 200))
    assert drained(gallery) == [("b", 200), ("a", 190)]


def test_a_state_that_was_drawn_is_not_drawn_again() -> None:
    gallery = Gallery()
    gallery.queue(named("a"))
    assert drained(gallery) == [("a", 10)]
    gallery.queue(named("ab"))
    gallery.queue_last(named("a"))
    assert drained(gallery) == [("b", 10)]
    gallery.queue(named("a", 20))
    assert drained(gallery) == [("a", 20)]


def test_a_layer_without_a_histogram_is_not_queued() -> None:
    gallery = Gallery()
    gallery.queue([replace(LAYER, esd=None)])
    gallery.queue_last([replace(LAYER, esd=None)])
    assert drained(gallery) == []


def test_what_is_queued_last_stands_behind_what_waits() -> None:
    """What waits already keeps its place, and is drawn in the newer state."""
    gallery = Gallery()
    gallery.queue(named("cb"))
    gallery.queue_last(named("abcd", 20))
    assert drained(gallery) == [("c", 20), ("b", 20), ("a", 20), ("d", 20)]


def test_what_was_read_after_a_step_is_forgotten() -> None:
    """Then it may be drawn again, at the same step."""
    gallery = Gallery()
    gallery.queue(named("a", 30))
    gallery.take()
    gallery.queue([*named("b", 10), *named("c", 20)])
    gallery.rewind(10)
    gallery.queue_last(named("a", 30))
    assert drained(gallery) == [("b", 10), ("a", 30)]
