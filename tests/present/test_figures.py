"""What is drawn of a layer, and which layers are."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import matplotlib as mpl
import numpy as np
import pytest
import torch

from esdmon.analysis import analyze
from esdmon.present import Gallery, MediaSchedule, draw_esd, prepare
from esdmon.present import figures as picture
from esdmon.present.figures import ticks
from esdmon.present.media import EVERY, MOST
from esdmon.records import Coverage, Esd, LayerReport, Report

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


def report(names: str, step: int) -> Report:
    return Report(step, tuple(named(names, step)), Coverage(0, 0))


def test_histograms_are_due_at_the_first_reading_and_every_fifth() -> None:
    showing = MediaSchedule()
    due = [[layer.name for layer in showing.histograms(report("ab", step))] for step in range(1, 2 * EVERY + 2)]
    assert due == [["a", "b"], *[[]] * (EVERY - 1), ["a", "b"], *[[]] * (EVERY - 1), ["a", "b"]]


def test_of_many_histograms_some_are_due_in_each_report() -> None:
    """Those first that have waited longest."""
    showing = MediaSchedule()
    names = "".join(chr(0x4E00 + k) for k in range(3 * MOST))
    due = ["".join(layer.name for layer in showing.histograms(report(names, step))) for step in range(1, 5)]
    assert due == [names[:MOST], names[MOST : 2 * MOST], names[2 * MOST :], ""]


@cache
def layers() -> dict[str, LayerReport]:
    """Spectra as they come, pleasant or not."""
    torch.manual_seed(0)
    weights = {
        "noise": torch.randn(128, 64),
        "tiny": torch.randn(128, 64) * 1e-15,
        "huge": torch.randn(128, 64) * 1e15,
        "equal": torch.eye(64),
        "one": torch.outer(torch.ones(64), torch.ones(64)),
        "few": torch.randn(12, 11),
        "half": torch.cat([torch.randn(32, 64), torch.zeros(32, 64)]),
        "heavy": torch.randn(128, 64) * torch.logspace(-3, 1, 64),
    }
    return {layer.name: layer for layer in analyze(weights)}


@pytest.mark.parametrize("name", layers())
def test_any_spectrum_can_be_drawn(name: str) -> None:
    """And is the same whatever was drawn before it."""
    layer = layers()[name]
    drawn = draw_esd(layer)
    assert drawn.shape == (400, 640, 3)
    assert drawn.dtype == np.uint8
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 20
    draw_esd(layers()["noise"])
    assert np.array_equal(draw_esd(layer), drawn)


@pytest.mark.parametrize("missing", ["lambda_max", "n_tail", "alpha_stderr", "bulk_edge", "bulk_sigma", "n_spikes"])
def test_a_measure_that_was_not_taken_is_not_drawn(missing: str) -> None:
    layer = layers()["noise"]
    assert missing in layer.measures
    few = {name: value for name, value in layer.measures.items() if name != missing}
    assert draw_esd(replace(layer, measures=few)).shape == (400, 640, 3)
    undefined = dict(layer.measures) | {missing: math.nan}
    assert draw_esd(replace(layer, measures=undefined)).shape == (400, 640, 3)


@pytest.mark.parametrize("name", ["слой/層", "a$b$c", "x" * 300, "new\nline", "", "%s{}"])
def test_any_name_can_be_drawn(name: str) -> None:
    """What the font cannot show is a question mark; nothing is taken for a formula."""
    assert draw_esd(replace(LAYER, name=name)).shape == (400, 640, 3)


def test_a_style_of_the_users_changes_nothing() -> None:
    """Nor is it changed."""
    drawn = draw_esd(LAYER)
    picture._local.__dict__.clear()
    with mpl.rc_context({"text.usetex": True, "figure.facecolor": "black", "font.size": 30, "lines.marker": "o"}):
        before = dict(mpl.rcParams)
        assert np.array_equal(draw_esd(LAYER), drawn)
        assert dict(mpl.rcParams) == before
    picture._local.__dict__.clear()


def test_a_layer_without_a_histogram_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="fc has no histogram to draw"):
        draw_esd(replace(LAYER, esd=None))


def test_an_installation_that_is_damaged_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The run goes on without pictures."""
    assert prepare()

    def broken(layer: LayerReport) -> None:
        raise AttributeError("_ARRAY_API not found", layer)

    monkeypatch.setattr(picture, "draw_esd", broken)
    assert not prepare()
    assert "no pictures are drawn: matplotlib cannot be used (('_ARRAY_API not found'" in caplog.text


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-2.5, 0.5, ["10⁻²", "10⁻¹", "10⁰"]),
        (-11.0, 1.0, ["10⁻¹⁰", "10⁻⁸", "10⁻⁶", "10⁻⁴", "10⁻²", "10⁰"]),
        (0.0, 0.5, ["1.26", "1.58", "2", "2.51"]),
    ],
)
def test_an_axis_has_few_round_numbers(low: float, high: float, expected: Sequence[str]) -> None:
    shown = ticks(low, high)
    assert [text for _, text in shown] == expected
    assert all(low <= place <= high for place, _ in shown)


def test_an_axis_of_any_length_has_few_numbers() -> None:
    for width in (0.1, 1, 2, 5, 7, 11, 13, 60, 300):
        for low in (-40.3, -0.5, 0.0, 7.7):
            assert 1 <= len(ticks(low, low + width)) <= 7
