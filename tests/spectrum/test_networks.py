"""The classifier on layers of published networks: what must hold on any of them, and agreement with blind labels."""

import numpy as np
import pytest

from esdmon.spectrum import Phase, PhaseReading, classify
from tests.benchmarks.ensembles import spectrum_of
from tests.fixtures.networks import NetworkLayer, load_networks

LARGE = 64


@pytest.fixture(scope="module")
def readings() -> dict[NetworkLayer, PhaseReading]:
    """All layers with their readings."""
    return {layer: classify(layer.spectrum) for layer in load_networks()}


def test_no_label_rests_on_a_fit_that_stopped_at_its_limit(readings: dict[NetworkLayer, PhaseReading]) -> None:
    for layer, reading in readings.items():
        bulk = layer.spectrum.bulk
        if bulk is not None and not bulk.is_found:
            assert reading.phase in (Phase.UNCLASSIFIED, Phase.HEAVY_TAILED), layer.tensor
            assert reading.phase is not Phase.HEAVY_TAILED or "No bulk of noise" in reading.explanation


def test_heavy_tails_and_clean_bulks_exclude_each_other(readings: dict[NetworkLayer, PhaseReading]) -> None:
    for layer, reading in readings.items():
        bulk = layer.spectrum.bulk
        assert bulk is not None
        if reading.phase is Phase.HEAVY_TAILED:
            assert bulk.ks * len(bulk.spikes) ** 0.5 > 6, layer.tensor
        if reading.over_regularized:
            assert reading.alpha_is_meaningful


def test_few_trained_layers_are_random_like(readings: dict[NetworkLayer, PhaseReading]) -> None:
    large = [reading for layer, reading in readings.items() if layer.spectrum.m >= LARGE]
    assert sum(reading.phase is Phase.RANDOM_LIKE for reading in large) <= 0.05 * len(large)
    assert sum(reading.over_regularized for reading in readings.values()) <= 3


def test_noise_with_the_scales_of_a_layer_is_random_like() -> None:
    rng = np.random.default_rng(0)
    random = meaningful = count = 0
    for layer in load_networks():
        scales = layer.spectrum.scales
        if scales is None or layer.spectrum.slices > 1 or layer.spectrum.n > 1024:
            continue
        noise = rng.standard_normal(layer.spectrum.shape) * np.sqrt(np.outer(scales.rows[0], scales.columns[0]))
        spectrum = spectrum_of(noise)
        reading = classify(spectrum)
        count += 1
        random += reading.phase is Phase.RANDOM_LIKE
        meaningful += reading.alpha_is_meaningful
    assert count > 150
    assert random >= 0.97 * count
    assert meaningful <= 0.005 * count


@pytest.mark.parametrize("held_back", [False, True])
def test_agreement_with_blind_labels(readings: dict[NetworkLayer, PhaseReading], *, held_back: bool) -> None:
    layers = [layer for layer in readings if layer.spectrum.m >= LARGE and layer.held_back is held_back]
    assert len(layers) > 100
    agreed = [layer for layer in layers if layer.labels[0] is layer.labels[1]]
    assert len(agreed) / len(layers) > 0.85  # of the two labellings
    right = sum(readings[layer].phase is layer.labels[0] for layer in agreed)
    assert right / len(agreed) > 0.68
