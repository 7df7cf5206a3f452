import inspect
from collections.abc import Callable
from dataclasses import fields
from itertools import pairwise

import numpy as np
import pytest
import torch

from esdmon.spectrum import Elements, Phase, PhaseThresholds, Spectrum, classify
from esdmon.spectrum.marchenko1967 import mp_quantile
from esdmon.spectrum.traps import trap
from tests.matrices import gaussian, pareto, pooled, read_stack, spectrum_of, spike_cut, spiked, with_eigenvalues

RNG_SEED = 11


def low_rank(rng: np.random.Generator) -> Spectrum:
    return spectrum_of(gaussian(rng, 1024, 200) @ gaussian(rng, 200, 384))


KNOWN: dict[str, tuple[Phase, Callable[[np.random.Generator], Spectrum]]] = {
    "noise": (Phase.RANDOM_LIKE, lambda rng: spectrum_of(gaussian(rng, 4096, 384))),
    "noise, square": (Phase.RANDOM_LIKE, lambda rng: spectrum_of(gaussian(rng, 512, 512))),
    "noise, Laplacian": (Phase.RANDOM_LIKE, lambda rng: spectrum_of(rng.laplace(size=(1024, 384)))),
    "noise, slices": (Phase.RANDOM_LIKE, lambda rng: pooled([gaussian(rng, 128, 64) for _ in range(9)])),
    "spikes at the edge": (
        Phase.BLEEDING_OUT,
        lambda rng: spectrum_of(spiked(rng, 4096, 384, np.linspace(1.06, 1.12, 6))),
    ),
    "spikes apart": (
        Phase.BULK_SPIKES,
        lambda rng: spectrum_of(spiked(rng, 4096, 384, np.linspace(1.25, 1.45, 9))),
    ),
    "power law, 2.5": (
        Phase.HEAVY_TAILED,
        lambda rng: spectrum_of(with_eigenvalues(rng, pareto(rng, 2.5, 384), 4096)),
    ),
    "power law, 1.6": (
        Phase.HEAVY_TAILED,
        lambda rng: spectrum_of(with_eigenvalues(rng, pareto(rng, 1.6, 384), 1024)),
    ),
    "low rank": (Phase.RANK_COLLAPSE, low_rank),
    "orthogonal": (Phase.UNCLASSIFIED, lambda rng: spectrum_of(np.linalg.qr(gaussian(rng, 512, 256))[0])),
}


@pytest.mark.parametrize("kind", KNOWN)
def test_ensembles_of_known_phase(kind: str) -> None:
    """What was made to be in a phase is read as that in at least five of six draws."""
    expected, make = KNOWN[kind]
    rng = np.random.default_rng(RNG_SEED)
    assert [classify(make(rng)).phase for _ in range(6)].count(expected) >= 5


@pytest.mark.parametrize("alpha", [1.5, 1.7])
def test_a_very_heavy_tail_is_no_collapse(alpha: float) -> None:
    """Its small eigenvalues are zero beside λmax, but no gulf parts them from the rest."""
    rng = np.random.default_rng(0)
    phases = {classify(spectrum_of(with_eigenvalues(rng, pareto(rng, alpha, 256), 512))).phase for _ in range(10)}
    assert Phase.RANK_COLLAPSE not in phases


def test_alpha_means_nothing_on_noise() -> None:
    """Of 100 matrices of noise none has a meaningful alpha or is over-regularised."""
    rng = np.random.default_rng(1)
    readings = [classify(spectrum_of(gaussian(rng, 256, 128))) for _ in range(100)]
    assert not any(reading.alpha_is_meaningful or reading.over_regularized for reading in readings)


def test_over_regularised_below_two() -> None:
    """Tails of exponent 1.6 are recognised as below 2; those of 2.2 are not."""
    rng = np.random.default_rng(2)
    for alpha, expected in ((1.6, 5), (2.2, 0)):
        draws = [spectrum_of(with_eigenvalues(rng, pareto(rng, alpha, 400), 800)) for _ in range(6)]
        found = sum(classify(draw).over_regularized for draw in draws)
        assert found >= expected if expected else found == 0


@pytest.mark.parametrize(
    ("spectrum", "reason"),
    [
        (Spectrum.from_eigenvalues(np.ones(20), shape=(40, 20)), "M is below 32"),
        (Spectrum.from_eigenvalues(np.zeros(80), shape=(80, 80)), "All weights are zero"),
        (
            Spectrum.from_eigenvalues(
                np.linspace(1, 2, 80), shape=(90, 80), elements=Elements(0.0, 1.0, -1.0, 1.0, 400, 0)
            ),
            "400 rows are dead",
        ),
    ],
    ids=["small", "zero", "dead"],
)
def test_no_phase_has_a_reason(spectrum: Spectrum, reason: str) -> None:
    """Unclassified is never silent."""
    reading = classify(spectrum)
    assert reading.phase is Phase.UNCLASSIFIED
    assert reason in reading.explanation


@pytest.mark.parametrize("kind", KNOWN)
def test_explanations_are_sentences(kind: str) -> None:
    """The evidence can be read out, and the confidence is a share."""
    reading = classify(KNOWN[kind][1](np.random.default_rng(RNG_SEED)))
    assert reading.explanation.endswith(".")
    assert "nan" not in reading.explanation
    assert 0 <= reading.confidence <= 1


def test_confidence_falls_towards_a_border() -> None:
    """Spikes that end near the border between bleeding-out and bulk+spikes are less sure than those far from it."""
    rng = np.random.default_rng(3)
    sure = classify(spectrum_of(spiked(rng, 4096, 384, np.full(9, 2.5))))
    unsure = classify(spectrum_of(spiked(rng, 4096, 384, np.full(9, 1.21))))
    assert sure.phase is unsure.phase is Phase.BULK_SPIKES
    assert sure.confidence > unsure.confidence


def test_thresholds_are_the_users_to_move() -> None:
    """The size below which there is no phase is one of them."""
    spectrum = spectrum_of(gaussian(np.random.default_rng(4), 80, 24))
    assert classify(spectrum).phase is Phase.UNCLASSIFIED
    assert classify(spectrum, PhaseThresholds(min_m=24)).phase is Phase.RANDOM_LIKE


def test_every_threshold_has_its_source() -> None:
    """The line below each says whose it is."""
    source = inspect.getsource(PhaseThresholds)
    for field in fields(PhaseThresholds):
        _, _, after = source.partition(f"    {field.name}: ")
        remark = after.split('"""')[1]
        assert any(mark in remark for mark in ("ours)", "(figure", "(table", "(text", "(set on")), field.name


def spectrum_near(edges: dict[int, float], *, n: int = 512, m: int = 256) -> Spectrum:
    """Noise by the quantiles of its law, the largest eigenvalues replaced: rank from above -> multiple of the cut."""
    lam = mp_quantile((np.arange(m) + 0.5) / m, n / m)
    cut = spike_cut(n, m)
    for place, times in edges.items():
        lam[-place] = times * cut
    return Spectrum.from_eigenvalues(np.sort(lam), shape=(n, m))


def one_spike(x: float) -> Spectrum:
    return spectrum_near({1: x})


def many_spikes(x: float) -> Spectrum:
    """Thirteen far ones, and one that crosses the cut."""
    return spectrum_near({place: 1.6 + place / 50 for place in range(1, 14)} | {14: x})


def with_zeros(x: float) -> Spectrum:
    lam = mp_quantile((np.arange(256) + 0.5) / 256, 2.0)
    lam[: round(x)] = 0
    return Spectrum.from_eigenvalues(lam, shape=(512, 256))


def dead(x: float) -> Spectrum:
    lam = mp_quantile((np.arange(256) + 0.5) / 256, 2.0)
    return Spectrum.from_eigenvalues(lam, shape=(512, 256), elements=Elements(0.0, 1.0, -1.0, 1.0, round(x), 0))


def a_tail(x: float) -> Spectrum:
    """A power law of exponent x, by its quantiles."""
    lam = (1 - (np.arange(384) + 0.5) / 384) ** (-1 / (x - 1))
    return Spectrum.from_eigenvalues(lam, shape=(768, 384))


def a_smeared_bulk(x: float) -> Spectrum:
    """A spike above noise whose spectrum is drawn out towards its edge."""
    lam = mp_quantile((np.arange(256) + 0.5) / 256, 2.0)
    lam = lam.max() * (lam / lam.max()) ** x
    lam[-1] *= 2
    return Spectrum.from_eigenvalues(lam, shape=(512, 256))


WALKS: dict[str, tuple[Callable[[float], Spectrum], np.ndarray[tuple[int], np.dtype[np.float64]]]] = {
    "from no spike to one": (one_spike, np.arange(0.95, 1.06, 0.0002)),
    "from bleeding to spikes": (one_spike, np.arange(1.05, 1.6, 0.0005)),
    "from few spikes to many": (many_spikes, np.arange(0.8, 1.0, 0.0005)),
    "from a clean bulk to a smeared one": (a_smeared_bulk, np.arange(1.0, 2.0, 0.002)),
    "into rank collapse": (with_zeros, np.arange(0, 40.0)),
    "into death": (dead, np.arange(450, 580.0)),
    "from heavy to lighter tails": (a_tail, np.arange(2.4, 4.2, 0.002)),
}


@pytest.mark.parametrize("walk", WALKS)
def test_confidence_is_low_on_both_sides_of_every_border(walk: str) -> None:
    """Whatever crosses it; of what is counted both neighbours are on the border."""
    make, path = WALKS[walk]
    readings = [classify(make(float(x))) for x in path]
    flips = [(a, b) for a, b in pairwise(readings) if a.phase is not b.phase]
    assert flips
    for before, after in flips:
        for reading in (before, after):
            assert reading.confidence <= 0.1, (before, after)


def test_a_bulk_that_nearly_is_noise_is_clean_below_few_spikes() -> None:
    smeared = [classify(a_smeared_bulk(x)) for x in (1.0, 1.06, 1.4)]
    assert [each.phase for each in smeared] == [Phase.BULK_SPIKES, Phase.BULK_SPIKES, Phase.BULK_DECAY]
    assert "the bulk is that of noise (KS·M" in smeared[0].explanation
    assert "the bulk is nearly that of noise (KS 0.0" in smeared[1].explanation


def test_a_tail_of_single_elements_is_not_over_regularised() -> None:
    """The paper's model of the heavy-tailed phase: shuffled it has the same spectrum, so it is not a correlation."""
    rng = np.random.default_rng(11)
    elements = (1 - rng.random((400, 300))) ** (-1 / 1.1) * rng.choice([-1.0, 1.0], (400, 300))
    spectrum = read_stack(torch.from_numpy(elements)[None])
    reading = classify(spectrum)
    assert reading.phase is Phase.HEAVY_TAILED
    assert spectrum.power_law.alpha < 1.8
    assert not reading.over_regularized
    assert "In random order its elements would have this tail too" in reading.explanation


@pytest.mark.parametrize("seed", [0, 5])
def test_a_tail_that_is_lighter_beyond_the_bulk_is_not_over_regularised(seed: int) -> None:
    """Structure of exponent 2, the critical one, over noise whose rows differ by .3 dex: the fit's alpha is 1.6."""
    rng = np.random.default_rng([seed, 512, 256])
    left, right = rng.standard_normal((512, 64)), rng.standard_normal((64, 256))
    noise, rows = rng.standard_normal((512, 256)), 10 ** (0.3 * rng.standard_normal((512, 1)))
    spectrum = read_stack(torch.from_numpy((noise + left * np.arange(1, 65) ** -0.5 @ right) * rows)[None])
    reading = classify(spectrum)
    assert reading.alpha_is_meaningful
    assert spectrum.power_law.alpha_high + 2 * spectrum.power_law.alpha_stderr < 2
    assert not reading.over_regularized


def test_where_there_is_no_tail_none_is_explained() -> None:
    """The diagonal of an identity has large elements, but all of its eigenvalues are equal."""
    spectrum = read_stack(torch.eye(64)[None])
    assert trap(spectrum) > 1
    reading = classify(spectrum)
    assert reading.phase is Phase.UNCLASSIFIED
    assert reading.explanation.endswith("orthogonal or rescaled weights look like this.")


def test_pooled_slices_have_a_bulk_of_noise_only_up_to_the_distance_of_their_number() -> None:
    """Noise of nine slices is nearer to its law than that of one, so the same distance says more."""
    rng = np.random.default_rng(7)
    tall = [rng.standard_normal((64, 64)) for _ in range(9)]
    lam = np.stack([np.sort(np.linalg.svd(one, compute_uv=False) ** 2) / 64 for one in tall])
    lam[:, -1] *= 3
    pooled = Spectrum.from_eigenvalues(lam, shape=(64, 64))
    assert classify(pooled).phase is Phase.BULK_SPIKES
    smeared = Spectrum.from_eigenvalues(lam**1.1, shape=(64, 64))
    assert smeared.bulk is not None
    assert 2 < smeared.bulk.ks < 6
    assert classify(smeared).phase is Phase.BULK_DECAY
    assert classify(Spectrum.from_eigenvalues(lam[0] ** 1.1, shape=(64, 64))).phase is Phase.BULK_SPIKES


def test_confidence_is_1_far_from_every_border() -> None:
    """Noise, one spike that is far out, a collapse to half of the rank."""
    sure = [one_spike(0.9), with_zeros(0), with_zeros(64)]
    assert [classify(each).confidence for each in sure] == [1, 1, 1]
