import numpy as np
import pytest

from esdmon.spectrum import Spectrum
from tests.matrices import gaussian, spectrum_of


def test_is_sorted_and_read_only() -> None:
    """What a measure is given cannot be changed by it."""
    spectrum = Spectrum.from_eigenvalues([3.0, 1.0, 2.0], shape=(4, 3))
    assert spectrum.eigenvalues.tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="read-only"):
        spectrum.eigenvalues[0] = 9


def test_slices_are_pooled() -> None:
    """(slices, M) keeps its slices and shows all eigenvalues as one."""
    spectrum = Spectrum.from_eigenvalues(np.array([[4.0, 1.0], [3.0, 2.0]]), shape=(5, 2))
    assert (spectrum.slices, spectrum.n, spectrum.m, spectrum.q) == (2, 5, 2, 2.5)
    assert spectrum.eigenvalues.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("lam", "shape", "message"),
    [
        ([1.0, 2.0], (1, 2), r"N >= M >= 1; got \(1, 2\)"),
        ([1.0, 2.0], (4, 3), "needs 3 eigenvalues per slice"),
        ([1.0, float("nan")], (4, 2), "finite and not negative; got nan"),
        ([1.0, -2.0], (4, 2), "finite and not negative; got -2.0"),
    ],
    ids=["wide", "count", "nan", "negative"],
)
def test_wrong_input_is_refused(lam: list[float], shape: tuple[int, int], message: str) -> None:
    """The message says what was got."""
    with pytest.raises(ValueError, match=message):
        Spectrum.from_eigenvalues(lam, shape=shape)


@pytest.mark.parametrize(("rank", "dtype"), [(128, "float32"), (256, "float32"), (128, "bfloat16"), (256, "float16")])
def test_zeros_are_recognised_at_the_precision_of_the_weight(rank: int, dtype: str) -> None:
    """A matrix rounded to its dtype has the rank that it was made with, where LAPACK's bound exceeds 1 too."""
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((512, rank)) @ rng.standard_normal((rank, 256))
    bits = {"float32": 23, "bfloat16": 7, "float16": 10}[dtype]
    mantissa, exponent = np.frexp(matrix)
    rounded = np.ldexp(np.round(mantissa * 2.0 ** (bits + 1)) / 2.0 ** (bits + 1), exponent)
    lam = spectrum_of(rounded).eigenvalues
    assert Spectrum.from_eigenvalues(lam, shape=(512, 256), dtype=dtype).nonzero.size == pytest.approx(rank, abs=2)


def test_one_fit_serves_all() -> None:
    """The fits are made once: what is published is what the phase rests on."""
    spectrum = spectrum_of(gaussian(np.random.default_rng(1), 60, 30))
    assert spectrum.power_law is spectrum.power_law
    assert spectrum.bulk is spectrum.bulk


def test_no_bulk_where_there_are_no_quantiles() -> None:
    """Fewer than 8 eigenvalues to a slice, or half of them zero."""
    assert Spectrum.from_eigenvalues(np.ones((9, 7)), shape=(9, 7)).bulk is None
    assert Spectrum.from_eigenvalues([0.0] * 12 + [1.0] * 10, shape=(30, 22)).bulk is None
