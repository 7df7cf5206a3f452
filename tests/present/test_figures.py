"""Pictures of spectra."""

import logging
import math
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib import font_manager
from numpy.typing import NDArray

from esdmon.analysis import analyze
from esdmon.present import draw_esd, figures, prepare_drawing
from esdmon.present.figures import ticks
from esdmon.records import Esd, LayerReport

LAYER = LayerReport("fc", "ok", 10, N=64, M=64, esd=Esd(-2.0, 1.0, (1, 2, 3)))


@cache
def layers() -> dict[str, LayerReport]:
    """Return spectra of all kinds, awkward ones included."""
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
    """The picture does not depend on what was drawn before."""
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
    """Characters that the font lacks become question marks; nothing is parsed as a formula."""
    assert draw_esd(replace(LAYER, name=name)).shape == (400, 640, 3)


def test_a_style_of_the_users_changes_nothing() -> None:
    """The style is not changed either. A new thread has a figure of its own, which is made under that style."""
    drawn = draw_esd(LAYER)
    with mpl.rc_context({"text.usetex": True, "figure.facecolor": "black", "font.size": 30, "lines.marker": "o"}):
        before = dict(mpl.rcParams)
        with ThreadPoolExecutor(1) as thread:
            assert np.array_equal(thread.submit(draw_esd, LAYER).result(), drawn)
        assert dict(mpl.rcParams) == before


def test_a_layer_without_a_histogram_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="fc has no histogram to draw"):
        draw_esd(replace(LAYER, esd=None))


def test_an_installation_that_is_damaged_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Training continues without pictures."""
    assert prepare_drawing()

    def broken(layer: LayerReport) -> None:
        raise AttributeError("_ARRAY_API not found", layer)

    monkeypatch.setattr(figures, "draw_esd", broken)
    assert not prepare_drawing()
    assert "matplotlib failed (('_ARRAY_API not found'" in caplog.text


def test_a_log_of_level_debug_gets_no_lines_of_matplotlib(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither at the first picture of a thread nor later; its loggers are unchanged, and other threads keep theirs."""
    caplog.set_level(logging.DEBUG)
    loggers = [logging.getLogger(name) for name in ("matplotlib", "matplotlib.font_manager")]
    fonts, real = loggers[1], figures._Painter.draw

    def draw_while_others_log(painter: figures._Painter, layer: LayerReport) -> NDArray[np.uint8]:
        assert logging.getLogger().isEnabledFor(logging.DEBUG)
        thread = threading.Thread(target=fonts.debug, args=("of the user",))
        thread.start()
        thread.join()
        fonts.debug("ours")
        fonts.warning("no such font")
        return real(painter, layer)

    monkeypatch.setattr(figures, "_local", threading.local())  # as in a new thread
    monkeypatch.setattr(figures._Painter, "draw", draw_while_others_log)
    font_manager.fontManager._findfont_cached.cache_clear()  # type: ignore[attr-defined]
    draw_esd(LAYER)
    assert [record.getMessage() for record in caplog.records] == ["of the user", "no such font"]
    assert [logger.filters for logger in loggers] == [[], []]
    fonts.debug("after it")
    assert "after it" in caplog.text


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
