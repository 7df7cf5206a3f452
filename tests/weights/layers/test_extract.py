"""Every kind of layer of torch against the matrices that a reader would write by hand."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from esdmon.weights import discover, read_spectrum

Expected = dict[str, list[Tensor]]


def slices_of(weight: Tensor, groups: int = 1) -> list[Tensor]:
    """One matrix for each group and kernel position, by indexing."""
    rows = weight.shape[0] // groups
    flat = weight.reshape(weight.shape[0], weight.shape[1], -1)
    return [flat[g * rows : (g + 1) * rows, :, k] for g in range(groups) for k in range(flat.shape[2])]


def of_convolution(layer: nn.Conv1d | nn.Conv3d | nn.ConvTranspose2d, groups: int = 1) -> tuple[nn.Module, Expected]:
    return layer, {type(layer).__name__: slices_of(layer.weight, groups)}


def attention() -> tuple[nn.Module, Expected]:
    layer = nn.MultiheadAttention(24, 4)
    weight = layer.in_proj_weight
    expected = {f"MultiheadAttention.in_proj_weight/{p}": [weight[24 * i : 24 * (i + 1)]] for i, p in enumerate("qkv")}
    return layer, expected | {"out_proj": [layer.out_proj.weight]}


def attention_of_three_widths() -> tuple[nn.Module, Expected]:
    layer = nn.MultiheadAttention(24, 4, kdim=16, vdim=12)
    expected = {f"MultiheadAttention.{p}_proj_weight": [getattr(layer, f"{p}_proj_weight")] for p in "qkv"}
    return layer, expected | {"out_proj": [layer.out_proj.weight]}


def recurrent(kind: type[nn.LSTM | nn.GRU | nn.RNN], gates: str) -> tuple[nn.Module, Expected]:
    layer = kind(15, 20, num_layers=2, bidirectional=True)
    expected = {}
    for name, weight in layer.named_parameters():
        if name.startswith("weight"):
            for i, gate in enumerate(gates):
                part = f"/{gate}" if len(gates) > 1 else ""
                expected[f"{kind.__name__}.{name}{part}"] = [weight[20 * i : 20 * (i + 1)]]
    return layer, expected


def cell(kind: type[nn.LSTMCell | nn.GRUCell | nn.RNNCell], gates: str) -> tuple[nn.Module, Expected]:
    layer, expected = kind(15, 20), {}
    for name in ("weight_ih", "weight_hh"):
        for i, gate in enumerate(gates):
            part = f"/{gate}" if len(gates) > 1 else ""
            expected[f"{kind.__name__}.{name}{part}"] = [layer.get_parameter(name)[20 * i : 20 * (i + 1)]]
    return layer, expected


def projected() -> tuple[nn.Module, Expected]:
    layer = nn.LSTM(15, 20, proj_size=12)
    expected = {
        f"LSTM.{name}/{gate}": [layer.get_parameter(name)[20 * i : 20 * (i + 1)]]
        for name in ("weight_ih_l0", "weight_hh_l0")
        for i, gate in enumerate("ifgo")
    }
    return layer, expected | {"LSTM.weight_hr_l0": [layer.get_parameter("weight_hr_l0")]}


def bilinear() -> tuple[nn.Module, Expected]:
    layer = nn.Bilinear(12, 14, 6)
    return layer, {"Bilinear": list(layer.weight)}


KINDS: dict[str, Callable[[], tuple[nn.Module, Expected]]] = {
    "Conv1d": lambda: of_convolution(nn.Conv1d(12, 24, 5)),
    "Conv1d, groups": lambda: of_convolution(nn.Conv1d(12, 24, 5, groups=3), 3),
    "Conv3d": lambda: of_convolution(nn.Conv3d(10, 12, 2)),
    "ConvTranspose2d": lambda: of_convolution(nn.ConvTranspose2d(12, 18, 3)),
    "ConvTranspose2d, groups": lambda: of_convolution(nn.ConvTranspose2d(12, 18, 3, groups=2), 2),
    "attention": attention,
    "attention of three widths": attention_of_three_widths,
    "LSTM": lambda: recurrent(nn.LSTM, "ifgo"),
    "GRU": lambda: recurrent(nn.GRU, "rzn"),
    "RNN": lambda: recurrent(nn.RNN, "h"),
    "LSTMCell": lambda: cell(nn.LSTMCell, "ifgo"),
    "GRUCell": lambda: cell(nn.GRUCell, "rzn"),
    "RNNCell": lambda: cell(nn.RNNCell, "h"),
    "LSTM with a projection": projected,
    "Bilinear": bilinear,
}


@pytest.mark.parametrize("kind", KINDS)
def test_eigenvalues_are_those_of_the_matrices_written_by_hand(kind: str) -> None:
    """Names and spectra, by a float64 SVD; and no parameter but vectors is left over."""
    torch.manual_seed(0)
    module, expected = KINDS[kind]()
    watched = discover(module)
    assert [matrix.name for matrix in watched.matrices] == list(expected)
    for matrix in watched.matrices:
        pieces = expected[matrix.name]
        spectrum = read_spectrum(matrix, precision="exact")
        by_hand = [
            np.sort(torch.linalg.svdvals(piece.detach().double()).numpy() ** 2) / max(piece.shape) for piece in pieces
        ]
        assert spectrum.shape == (max(pieces[0].shape), min(pieces[0].shape))
        assert np.allclose(spectrum.by_slice, np.stack(by_hand), rtol=1e-9, atol=1e-14)
    assert {skip.reason for skip in watched.coverage.skipped} <= {"vectors"}
