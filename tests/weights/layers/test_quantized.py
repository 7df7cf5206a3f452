"""Packed weights are read as the numbers that they represent, with the libraries that pack them."""

import copy
import logging
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import esdmon
from esdmon.weights import discover, read_spectrum


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(128, 64, bias=False)


def by_hand(weight: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.sort(torch.linalg.svdvals(weight.detach().double()).numpy() ** 2) / 128


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_torchs_own() -> None:
    """A quantised tensor in a mapping."""
    packed = torch.quantize_per_tensor(linear().weight.detach(), 0.001, 0, torch.qint8)
    (matrix,) = discover({"w": packed}).matrices
    assert np.allclose(read_spectrum(matrix, precision="exact").eigenvalues, by_hand(packed.dequantize()), rtol=1e-9)


@pytest.mark.parametrize("config", ["Int8WeightOnlyConfig", "Float8WeightOnlyConfig"])
def test_torchao(config: str) -> None:
    """A tensor class with a `dequantize` of its own."""
    logging.disable(logging.WARNING)  # its loader warns of accelerators that this machine lacks
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchao import quantization
    logging.disable(logging.NOTSET)
    model = nn.Sequential(linear().bfloat16())
    quantization.quantize_(model, getattr(quantization, config)())
    weight = model.get_parameter("0.weight")
    watched = discover(model)
    assert watched.coverage.share == 1
    assert np.allclose(
        read_spectrum(watched.matrices[0], precision="exact").eigenvalues, by_hand(weight.dequantize()), rtol=1e-9
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_bitsandbytes() -> None:
    """4-bit and 8-bit layers, whose parameters have neither the shape nor the numbers of the weight."""
    import bitsandbytes

    four, eight = (
        bitsandbytes.nn.Linear4bit(128, 64, bias=False),
        bitsandbytes.nn.Linear8bitLt(128, 64, bias=False, has_fp16_weights=False),
    )
    model = nn.Sequential(four, nn.Linear(64, 128, bias=False), eight)
    for layer in (four, eight):
        layer.load_state_dict(linear().state_dict())
    report = esdmon.analyze(model.to("cpu"), precision="exact")
    assert [(layer.status, layer.N, layer.M) for layer in report] == [("ok", 128, 64)] * 3
    assert report.coverage.share == 1
    exact = esdmon.analyze(nn.Sequential(copy.deepcopy(linear())))["0"].measures["spectral_norm"]
    assert report["0"].measures["spectral_norm"] == pytest.approx(exact, rel=0.05)
    assert report["2"].measures["spectral_norm"] == pytest.approx(exact, rel=0.01)


def test_packed_numbers_of_an_unknown_kind_are_skipped() -> None:
    """With a reason, in the report and in the coverage."""
    report = esdmon.analyze({"w": torch.ones(20, 20, dtype=torch.int8), "v": torch.randn(20, 20)})
    assert (report["w"].status, report["w"].reason) == (
        "skipped",
        "packed as torch.int8, in a layout that is not known; a plugin's esdmon_materialize can convert it",
    )
    assert [(skip.name, skip.reason) for skip in report.coverage.skipped] == [("w", report["w"].reason)]
