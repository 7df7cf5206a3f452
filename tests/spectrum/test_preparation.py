"""Statistics, dead rows and scales of arrays are those that tensors have: an implementation apart, as an oracle."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch import Tensor

from esdmon.errors import UnreadableError
from esdmon.spectrum import Spectrum
from esdmon.spectrum.decomposition import spectrum_of
from esdmon.spectrum.preparation import prepare_array
from esdmon.weights import Matrix, export, read_spectrum, solve_lapack
from tests.matrices import pareto

ALSO = ("shuffled", "equalised", "windows")


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=dtype) / 10


def with_dead_units() -> Tensor:
    weight = noise(1, 200, 120)
    weight[:, 3] = 0
    weight[:, :, 5:9] *= 1e-7
    weight[:, 10:14] *= 0.05
    weight[:, 50, 50] = 0
    return weight


def with_dead_slices() -> Tensor:
    weight = noise(9, 64, 32)
    weight[:4] = 0
    weight[4] *= 1e-6
    weight[:, 5] = 0
    return weight


def heavy() -> Tensor:
    """Independent elements of tail exponent 2.5, of which single ones are as large as rows."""
    rng = np.random.default_rng(4)
    sizes = pareto(rng, 2.5, 300 * 200).reshape(1, 300, 200)
    return torch.from_numpy(sizes * rng.choice([-1.0, 1.0], sizes.shape))


def with_a_trap() -> Tensor:
    weight = noise(1, 90, 140)
    weight[0, 17, 33] = 7.0
    return weight


WEIGHTS = {
    "noise": noise(1, 120, 200),
    "tall": noise(1, 300, 100),
    "transposed": noise(1, 300, 100).mT,
    "slices": noise(9, 64, 32),
    "slices-of-a-convolution": noise(64, 32, 3, 3).permute(2, 3, 0, 1).flatten(0, 1),
    "one-column": noise(20, 64, 1),
    "scales": noise(1, 160, 96) * torch.linspace(0.2, 3, 160)[:, None] * torch.linspace(1, 2, 96),
    "heavy-elements": heavy(),
    "dead-units": with_dead_units(),
    "dead-slices": with_dead_slices(),
    "dead-channels": noise(20, 64, 1) * (torch.arange(20) % 4 > 0)[:, None, None],
    "trap-of-one-element": with_a_trap(),
    "trap-of-the-mean": noise(1, 90, 140) + 0.3,
    "large-mean": noise(1, 90, 140) * 1e-4 + 1,
    "tiny": noise(1, 90, 140, dtype=torch.float64) * 1e-90,
    "huge": noise(1, 90, 140) * 1e25,
    "low-rank": noise(1, 128, 8) @ noise(1, 8, 64),
    "float64": noise(1, 128, 64, dtype=torch.float64),
    "float64-low": (noise(1, 128, 64, dtype=torch.float64) * torch.logspace(-9, 0, 64, dtype=torch.float64)),
    "bfloat16": noise(1, 128, 64, dtype=torch.bfloat16),
    "float16": noise(1, 128, 64, dtype=torch.float16),
}


def read(weight: Tensor, view: str = "weight", also: tuple[str, ...] = ALSO) -> tuple[Spectrum, Spectrum]:
    """The spectrum of a stack, by tensors and by arrays."""
    matrix = Matrix("matrix", lambda: weight, lambda stack: stack, view=view)
    exported = export(matrix, also=also)
    arrays = np.ascontiguousarray(exported.stack)
    return read_spectrum(matrix, also=also, solver=solve_lapack), spectrum_of(*prepare_array(arrays, exported.weight))


@pytest.mark.parametrize("name", WEIGHTS)
def test_arrays_are_read_as_tensors_are(name: str) -> None:
    tensors, arrays = read(WEIGHTS[name])
    assert (arrays.shape, arrays.dtype, arrays.precision, arrays.from_gram) == (
        tensors.shape,
        tensors.dtype,
        tensors.precision,
        tensors.from_gram,
    )
    for part in ("by_slice", *ALSO):
        theirs = getattr(tensors, part)
        assert getattr(arrays, part) == pytest.approx(theirs, rel=1e-4, abs=3e-6 * theirs.max()), part
    assert arrays.elements is not None
    assert tensors.elements is not None
    ours, others = asdict(arrays.elements), asdict(tensors.elements)
    assert (ours.pop("trap") is None) == (others.pop("trap") is None)
    assert ours == pytest.approx(others, rel=2e-5, abs=1e-7 * tensors.elements.maximum)
    assert (arrays.scales is None) == (tensors.scales is None)
    if arrays.scales is not None and tensors.scales is not None:
        for side in ("rows", "columns", "kurtosis"):
            assert getattr(arrays.scales, side) == pytest.approx(getattr(tensors.scales, side), rel=1e-4)


def test_the_weights_have_what_is_compared() -> None:
    """Some have unequal scales, dead and weak units, a trap, a scale of their own, lost eigenvalues."""
    spectra = {name: read(weight)[1] for name, weight in WEIGHTS.items()}
    elements = {name: spectrum.elements for name, spectrum in spectra.items() if spectrum.elements is not None}
    assert spectra["scales"].scales is not None
    assert spectra["noise"].scales is None
    alone = spectra["heavy-elements"].scales
    assert alone is not None
    assert np.ptp(alone.rows) == 0
    dead = elements["dead-units"]
    assert (dead.zero_rows, dead.zero_columns, dead.weak_rows, dead.zeros) == (1, 4, 4, 1)
    trap = elements["trap-of-one-element"].trap
    assert trap is not None
    assert (trap.count, trap.row, trap.column, trap.value) == (1, 17, 33, 7.0)
    assert elements["trap-of-the-mean"].trap is not None
    assert spectra["low-rank"].precision == "float64"
    assert not spectra["float64-low"].from_gram


def test_traps_are_taken_apart_alike() -> None:
    for name in ("trap-of-one-element", "trap-of-the-mean"):
        tensors, arrays = (spectrum.elements for spectrum in read(WEIGHTS[name]))
        assert tensors is not None
        assert arrays is not None
        assert tensors.trap is not None
        assert arrays.trap is not None
        assert asdict(arrays.trap) == pytest.approx(asdict(tensors.trap), rel=1e-5)


def test_products_keep_their_rows() -> None:
    """The rows of the matrix that represents a product are not units of a layer."""
    tensors, arrays = read(with_dead_units(), view="qk", also=())
    assert arrays.shape == tensors.shape == (200, 120)
    assert arrays.elements is tensors.elements is None


def test_vectors_are_those_of_tensors() -> None:
    tensors, arrays = read(noise(1, 64, 48), also=("vectors",))
    assert tensors.vectors is not None
    assert arrays.vectors is not None
    assert np.abs(arrays.vectors) == pytest.approx(np.abs(tensors.vectors), abs=1e-8)


@pytest.mark.parametrize(
    "weight",
    [
        pytest.param(torch.full((1, 64, 64), float("nan")), id="nan"),
        pytest.param(noise(1, 64, 64) / 0, id="infinite"),
        pytest.param(torch.zeros(1, 64, 64), id="zero"),
        pytest.param(torch.zeros(1, 64, 4), id="zero-and-small"),
        pytest.param(noise(1, 64, 4), id="small"),
        pytest.param(noise(1, 64, 64, dtype=torch.float64) * 1e200, id="beyond-float64"),
        pytest.param(noise(1, 64, 64, dtype=torch.float64) * 1e-200, id="below-float64"),
    ],
)
def test_what_cannot_be_read_has_the_same_reason(weight: Tensor) -> None:
    matrix = Matrix("matrix", lambda: weight, lambda stack: stack)
    with pytest.raises(UnreadableError, match=r".") as by_tensors:
        read_spectrum(matrix)
    exported = export(matrix)
    with pytest.raises(UnreadableError, match=r".") as by_arrays:
        prepare_array(exported.stack, exported.weight)
    assert (by_arrays.value.status, by_arrays.value.reason) == (by_tensors.value.status, by_tensors.value.reason)
