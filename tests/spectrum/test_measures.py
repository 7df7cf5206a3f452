import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import esdmon.spectrum
from esdmon.spectrum import Elements, Measure, Spectrum, classify
from esdmon.spectrum.arrays import Floats
from esdmon.spectrum.measures import BUILT_IN_MEASURES
from tests.matrices import gaussian, spectrum_of
from tests.strategies import hostile_spectra, matrices

BY_NAME = {measure.name: measure for measure in BUILT_IN_MEASURES}
SCALE_FREE = ("alpha", "ks_distance", "n_tail", "hill_alpha", "stable_rank", "hard_rank", "matrix_entropy", "n_spikes")


def measure(name: str, spectrum: Spectrum) -> float:
    return BY_NAME[name].compute(spectrum)


@pytest.fixture(scope="module")
def known() -> Spectrum:
    """Eigenvalues 1, 2, 5 of an N = 8, M = 3 matrix."""
    return Spectrum.from_eigenvalues([1.0, 2.0, 5.0], shape=(8, 3))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("stable_rank", 8 / 5),
        ("lambda_max", 5.0),
        ("spectral_norm", math.sqrt(40)),
        ("frobenius_norm", math.sqrt(64)),
        ("hard_rank", 3.0),
        ("matrix_entropy", -sum(p * math.log(p) for p in (1 / 8, 2 / 8, 5 / 8)) / math.log(3)),
        ("hill_alpha", 1 + 2 / (math.log(1) + math.log(5 / 2))),
    ],
)
def test_values_worked_by_hand(known: Spectrum, name: str, expected: float) -> None:
    """Each formula on three eigenvalues."""
    assert measure(name, known) == pytest.approx(expected)


def test_norms_of_the_exponent(known: Spectrum) -> None:
    """alpha·log₁₀ λmax(WᵀW), and log₁₀ Σ λ(WᵀW)^alpha, of the published alpha."""
    alpha = known.power_law.alpha
    assert measure("alpha_hat", known) == pytest.approx(alpha * math.log10(40))
    assert measure("log_alpha_norm", known) == pytest.approx(math.log10(8**alpha + 16**alpha + 40**alpha))


@pytest.mark.parametrize("name", ["stable_rank", "matrix_entropy", "hill_alpha", "mp_soft_rank", "hard_rank"])
@pytest.mark.parametrize(("n", "m"), [(4096, 384), (384, 192), (256, 256)])
def test_noise_reads_as_its_null(name: str, n: int, m: int) -> None:
    """On Gaussian elements each measure is within 4 % of its null."""
    spectrum = spectrum_of(gaussian(np.random.default_rng(4), n, m))
    null = BY_NAME[name].null
    assert null is not None
    assert measure(name, spectrum) == pytest.approx(null(spectrum), rel=0.04)


@pytest.mark.parametrize(
    ("n", "m", "rank", "entropy", "hill"), [(4096, 384, 226, 0.9921, 5.02), (384, 192, 67.4, 0.9525, 2.72)]
)
def test_initial_values_of_the_papers_network(n: int, m: int, rank: float, entropy: float, hill: float) -> None:
    """FC1 and FC2 of MiniAlexNet before training: stable rank and entropy as in Martin & Mahoney's figures."""
    spectrum = spectrum_of(gaussian(np.random.default_rng(0), n, m))
    assert measure("stable_rank", spectrum) == pytest.approx(rank, rel=0.03)
    assert measure("matrix_entropy", spectrum) == pytest.approx(entropy, abs=0.001)
    assert measure("hill_alpha", spectrum) == pytest.approx(hill, abs=0.09)


def test_soft_rank_of_a_layer_too_small_for_a_bulk() -> None:
    """M < 8: λ⁺ of the variance of all elements, by hand, over λmax."""
    spectrum = Spectrum.from_eigenvalues(np.array([[1.0, 1.0], [1.0, 1.0], [10.0, 10.0]]), shape=(8, 2))
    assert measure("mp_soft_rank", spectrum) == pytest.approx(4 * 1.5**2 / 10)
    assert math.isnan(measure("n_spikes", spectrum))


@pytest.mark.parametrize(("rows", "slices"), [(1, 576), (64, 49)], ids=["depthwise", "one channel"])
def test_pooled_norms_are_no_spectrum(rows: int, slices: int) -> None:
    """A slice of one column has one eigenvalue: pooled they have norms, and no alpha, no edge of noise, no trap."""
    stack = np.random.default_rng(0).standard_normal((slices, rows, 1))
    norms = np.square(stack).sum(axis=(1, 2))
    elements = Elements(stack.mean(), stack.var(), stack.min(), stack.max())
    spectrum = Spectrum.from_eigenvalues(norms[:, None] / rows, shape=(rows, 1), elements=elements)
    undefined = {each.name for each in BUILT_IN_MEASURES if not each.needs and math.isnan(each.compute(spectrum))}
    assert {"alpha", "xmin", "hill_alpha", "mp_soft_rank", "n_spikes", "erg_rank", "erg_gap", "trap"} <= undefined
    assert measure("frobenius_norm", spectrum) == pytest.approx(np.linalg.norm(stack))
    assert measure("spectral_norm", spectrum) == pytest.approx(norms.max() ** 0.5)
    assert classify(spectrum).explanation.startswith(f"Its slices are {rows} × 1: each has one eigenvalue")


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_equal_eigenvalues_have_no_hill_alpha(precision: str) -> None:
    """Those of an orthogonal matrix differ by rounding errors, from which a tail of 1e6 would follow."""
    matrix = np.linalg.qr(gaussian(np.random.default_rng(0), 128, 64))[0].astype(precision)
    lam = np.linalg.eigvalsh(matrix.T @ matrix).astype(np.float64)
    assert np.ptp(lam) > 0
    assert math.isnan(measure("hill_alpha", Spectrum.from_eigenvalues(lam, shape=(128, 64))))


@given(matrices(), st.floats(1e-6, 1e6))
def test_scale_free_measures_are(matrix: Floats, scale: float) -> None:
    """W → cW leaves them."""
    first, second = spectrum_of(matrix), spectrum_of(matrix * scale)
    for name in SCALE_FREE:
        assert measure(name, second) == pytest.approx(measure(name, first), rel=1e-4, nan_ok=True), name


@given(matrices())
def test_transposing_and_rotating_change_nothing(matrix: Floats) -> None:
    """W and Wᵀ, and W in other bases, have one spectrum."""
    rng = np.random.default_rng(0)
    turned = np.linalg.qr(rng.standard_normal((matrix.shape[0], matrix.shape[0])))[0] @ matrix
    expected = {name: measure(name, spectrum_of(matrix)) for name in ("stable_rank", "matrix_entropy", "lambda_max")}
    for other in (matrix.T, turned, matrix[:, ::-1]):
        for name, value in expected.items():
            assert measure(name, spectrum_of(other)) == pytest.approx(value, rel=1e-6), name


@given(matrices())
def test_bounds(matrix: Floats) -> None:
    """Each measure stays in the range that its definition gives."""
    spectrum = spectrum_of(matrix)
    m = spectrum.m
    assert 1 - 1e-9 <= measure("stable_rank", spectrum) <= m + 1e-9
    assert 0 <= measure("matrix_entropy", spectrum) <= 1 + 1e-9
    assert 1 <= measure("hard_rank", spectrum) <= m
    assert 0 <= measure("ks_distance", spectrum) <= 1 or math.isnan(measure("ks_distance", spectrum))
    assert not measure("mp_soft_rank", spectrum) > 1


@given(hostile_spectra())
def test_nothing_raises(spectrum: Spectrum) -> None:
    """Whatever the eigenvalues, every measure, null and phase is a number or NaN."""
    for each in BUILT_IN_MEASURES:
        assert isinstance(each.compute(spectrum), float), each.name
        if each.null is not None:
            assert isinstance(each.null(spectrum), float), each.name
    classify(spectrum)


def test_names_are_unique() -> None:
    """A name is a key and a tag."""
    assert len(BY_NAME) == len(BUILT_IN_MEASURES)
    assert all(isinstance(each, Measure) for each in BUILT_IN_MEASURES)


def test_the_packages_table_has_every_measure_with_definition_and_unit() -> None:
    """In the order of the list, so that none is missed and none is left behind."""
    lines = (esdmon.spectrum.__doc__ or "").splitlines()
    (first, second, last) = (k for k, line in enumerate(lines) if line.startswith("==="))
    widths = [len(rule) + 1 for rule in lines[first].split()]
    columns = [(line[: widths[0]], line[widths[0] : sum(widths[:2])], line[sum(widths[:2]) :]) for line in lines]
    rows = [[cell.strip() for cell in row] for row in columns[second + 1 : last]]
    assert [name for name, _, _ in rows] == list(BY_NAME)
    assert all(definition and unit for _, definition, unit in rows)
