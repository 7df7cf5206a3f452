import numpy as np
import pytest
import torch
from torch import Tensor, nn

from esdmon.errors import InputError
from esdmon.spectrum import classify
from esdmon.weights import (
    Solver,
    UnreadableError,
    check_precision,
    discover,
    read_spectrum,
    solve_lapack,
    solve_torch,
)


def reference(matrix: Tensor) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Eigenvalues of WᵀW/N by a float64 SVD."""
    lam: np.ndarray[tuple[int], np.dtype[np.float64]] = torch.linalg.svdvals(
        matrix.detach().double()
    ).numpy() ** 2 / max(matrix.shape)
    return np.sort(lam)


@pytest.mark.parametrize("shape", [(64, 20), (20, 64), (100, 100)], ids=str)
@pytest.mark.parametrize(("precision", "tolerance"), [("auto", 3e-6), ("exact", 1e-14)])
def test_linear_equals_svd(shape: tuple[int, int], precision: str, tolerance: float) -> None:
    """Both precisions, both ways round; the tolerance is relative to λmax."""
    torch.manual_seed(0)
    layer = nn.Linear(*shape)
    spectrum = read_spectrum(discover(layer).matrices[0], precision=precision)
    expected = reference(layer.weight)
    assert spectrum.shape == (max(shape), min(shape))
    assert np.abs(spectrum.eigenvalues - expected).max() <= tolerance * expected[-1]


@pytest.mark.parametrize("groups", [1, 2, 12])
def test_convolution_equals_svd_of_each_slice(groups: int) -> None:
    """One matrix for each group and kernel position, written out by hand."""
    torch.manual_seed(0)
    layer = nn.Conv2d(12, 24, (3, 2), groups=groups)
    spectrum = read_spectrum(discover(layer).matrices[0], precision="exact")
    outputs, inputs = 24 // groups, 12 // groups
    by_hand = [
        reference(layer.weight[g * outputs : (g + 1) * outputs, :, i, j])
        for g in range(groups)
        for i in range(3)
        for j in range(2)
    ]
    assert spectrum.shape == (max(outputs, inputs), min(outputs, inputs))
    assert np.allclose(spectrum.by_slice, np.stack(by_hand), rtol=1e-12)


def test_rank_deficiency_is_read_in_float64() -> None:
    """Where the rank would depend on float32's noise the solve is repeated."""
    torch.manual_seed(0)
    low = torch.randn(256, 128) @ torch.randn(128, 256)
    spectrum = read_spectrum(discover({"w": low}).matrices[0])
    assert spectrum.precision == "float64"
    assert spectrum.nonzero.size == 128
    full = read_spectrum(discover({"w": torch.randn(256, 128)}).matrices[0])
    assert full.precision == "float32"


@pytest.mark.parametrize("solver", [solve_lapack, solve_torch])
@pytest.mark.parametrize(("deviation", "used"), [(1.0, "float32"), (3.0, "float64")])
def test_a_tail_that_begins_very_low_is_read_in_float64(deviation: float, used: str, solver: Solver) -> None:
    """Log-normal scales of the columns spread λ over decades; alpha is that of float64 either way."""
    torch.manual_seed(0)
    weight = torch.randn(512, 128) * torch.exp(deviation * torch.randn(128))
    matrix = discover({"w": weight}).matrices[0]
    quick, exact = (read_spectrum(matrix, precision=precision, solver=solver) for precision in ("auto", "exact"))
    assert quick.precision == used
    assert quick.power_law.alpha == pytest.approx(exact.power_law.alpha, abs=1e-4)


@pytest.mark.parametrize("solver", [solve_lapack, solve_torch])
@pytest.mark.parametrize("seed", range(6))
def test_eigenvalues_that_repeat_are_fitted_as_in_float64(seed: int, solver: Solver) -> None:
    """As of a shared block: those that rounding separates would count one by one, and move alpha and the phase."""
    block = np.random.default_rng(seed).standard_t(2.5, (32, 32)).astype(np.float32)
    matrix = discover({"w": torch.kron(torch.eye(8), torch.from_numpy(block))}).matrices[0]
    quick, exact = (read_spectrum(matrix, precision=precision, solver=solver) for precision in ("auto", "exact"))
    assert quick.precision == "float64"
    assert quick.power_law == exact.power_law
    assert classify(quick).phase is classify(exact).phase


@pytest.mark.parametrize("weight", [torch.eye(64), nn.init.orthogonal_(torch.empty(64, 64))], ids=["eye", "orthogonal"])
def test_where_all_eigenvalues_are_equal_there_is_nothing_to_fit_again(weight: Tensor) -> None:
    """As of a layer at its orthogonal initialisation."""
    assert read_spectrum(discover({"w": weight}).matrices[0]).precision == "float32"


def test_autocast_is_kept_out() -> None:
    """A reading inside an autocast region is as exact as one outside."""
    matrix = discover({"w": torch.randn(64, 32)}).matrices[0]
    outside = read_spectrum(matrix)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = read_spectrum(matrix)
    assert np.array_equal(inside.eigenvalues, outside.eigenvalues)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    """Half precision is read as what it holds, double as double."""
    weight = torch.randn(64, 32).to(dtype)
    spectrum = read_spectrum(discover({"w": weight}).matrices[0], precision="exact")
    assert spectrum.dtype == str(dtype).removeprefix("torch.")
    assert np.allclose(spectrum.eigenvalues, reference(weight), rtol=1e-12)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_extreme_scales(scale: float) -> None:
    """Elements whose squares leave float32 are read all the same."""
    weight = torch.randn(64, 32)
    small = read_spectrum(discover({"w": weight * scale}).matrices[0])
    plain = read_spectrum(discover({"w": weight}).matrices[0])
    assert np.allclose(small.eigenvalues / scale**2, plain.eigenvalues, rtol=1e-4)


def test_zero_rows_and_columns_are_dropped_and_counted() -> None:
    """Dead units are not a rank collapse: they are left out, and counted."""
    weight = torch.randn(60, 40)
    alive = weight[10:, :35]
    weight[:10] = 0
    weight[:, 35:] = 0
    spectrum = read_spectrum(discover({"w": weight}).matrices[0], precision="exact")
    assert spectrum.elements is not None
    assert (spectrum.elements.zero_rows, spectrum.elements.zero_columns) == (10, 5)
    assert spectrum.shape == (50, 35)
    assert np.allclose(spectrum.eigenvalues, reference(alive), rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_moments_of_a_convolution_whatever_its_dtype(dtype: torch.dtype, shift: float) -> None:
    """Also around a mean of a hundred deviations, and though the slices do not lie in memory one by one."""
    torch.manual_seed(0)
    weight = (torch.randn(96, 64, 3, 3) * 0.03 + shift).to(dtype)
    elements = read_spectrum(discover({"c.weight": weight}).matrices[0]).elements
    assert elements is not None
    assert elements.mean == pytest.approx(float(weight.double().mean()), rel=1e-5, abs=1e-6)
    assert elements.variance == pytest.approx(float(weight.double().var(correction=0)), rel=5e-3)


def test_elements_are_those_of_the_weight() -> None:
    """Mean, variance and extremes, of the whole weight."""
    weight = torch.randn(60, 40) * 3 + 1
    elements = read_spectrum(discover({"w": weight}).matrices[0]).elements
    assert elements is not None
    expected = (weight.mean().item(), weight.var(correction=0).item(), weight.min().item(), weight.max().item())
    assert (elements.mean, elements.variance, elements.minimum, elements.maximum) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("weight", "status", "reason"),
    [
        (torch.zeros(20, 20), "degenerate", "all weights are zero"),
        (torch.full((20, 20), float("nan")), "nonfinite", "400 of 400 elements are NaN or infinite"),
        (torch.eye(20).index_fill(0, torch.tensor([0]), float("inf")), "nonfinite", "20 of 400"),
        (torch.randn(20, 9), "skipped", "9 eigenvalues; at least 10 are needed"),
        (
            torch.randn(20, 30) * (torch.arange(20) < 6)[:, None],
            "skipped",
            "14 of 20 rows are dead; the rest has 6 eigenvalues; at least 10 are needed",
        ),
        (torch.empty(0, 20), "skipped", "an empty weight"),
        (torch.ones(20, 20, dtype=torch.int8), "skipped", "packed as torch.int8, in a layout that is not known"),
        (torch.ones(20, 20).to(torch.float8_e4m3fn), "skipped", "packed as torch.float8_e4m3fn"),
        (torch.ones(20, 20, dtype=torch.complex64), "skipped", "its numbers are complex"),
        (torch.empty(20, 20, device="meta"), "skipped", "on the meta device"),
    ],
    ids=["zero", "nan", "inf", "few", "dead", "empty", "int8", "float8", "complex", "meta"],
)
def test_what_cannot_be_read_has_a_reason(weight: Tensor, status: str, reason: str) -> None:
    """A status and a reason, never another exception."""
    with pytest.raises(UnreadableError, match=reason) as caught:
        read_spectrum(discover({"w": weight}).matrices[0])
    assert caught.value.status == status


def test_unknown_precision_is_refused() -> None:
    """With the ones that there are."""
    with pytest.raises(InputError, match="precision= must be one of auto, exact; got 'float16'"):
        check_precision("float16")


@pytest.mark.parametrize("shape", [(60, 25), (25, 60)], ids=str)
def test_vectors_belong_to_their_eigenvalues(shape: tuple[int, int]) -> None:
    """On request: X v = λ v for the Gram matrix of the shorter side, in ascending order."""
    weight = torch.randn(shape)
    spectrum = read_spectrum(discover({"w": weight}).matrices[0], also=["vectors"])
    assert spectrum.vectors is not None
    tall = (weight if shape[0] >= shape[1] else weight.T).double().numpy()
    gram = tall.T @ tall / tall.shape[0]
    (vectors,) = spectrum.vectors
    assert np.allclose(gram @ vectors, vectors * spectrum.by_slice[0], atol=1e-10)
    assert np.allclose(vectors.T @ vectors, np.eye(25), atol=1e-10)


def test_a_shuffled_copy_has_the_same_elements_and_its_own_random_numbers() -> None:
    """On request: the mass is that of the weight, the structure is gone, and the user's random state is untouched."""
    torch.manual_seed(0)
    weight = torch.randn(200, 100) + 5 * torch.outer(torch.randn(200), torch.randn(100)) / 10
    state = torch.get_rng_state()
    matrix = discover({"w": weight}).matrices[0]
    first, second = (read_spectrum(matrix, also=["shuffled"]) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    assert first.shuffled is not None
    assert second.shuffled is not None
    assert np.array_equal(first.shuffled, second.shuffled)
    assert first.shuffled.sum() == pytest.approx(first.eigenvalues.sum(), rel=1e-5)
    assert first.shuffled.max() < first.lambda_max / 2
