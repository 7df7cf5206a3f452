"""Weights with a scale for each block: whose blocks are not square, do not divide the sides, or are powers of two."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import esdmon


def saved(folder: Path, scales: Tensor, *, blocks: list[int] | None, shape: tuple[int, ...] = (100, 130)) -> Path:
    """A folder with float8 ones, and a scale for each block."""
    save_file(
        {"a.weight": torch.ones(shape).to(torch.float8_e4m3fn), "a.weight_scale_inv": scales},
        folder / "model.safetensors",
    )
    if blocks is not None:
        (folder / "config.json").write_text(json.dumps({"quantization_config": {"weight_block_size": blocks}}))
    return folder


def norm_of(scales: Tensor, rows: int, columns: int, shape: tuple[int, int] = (100, 130)) -> float:
    """Frobenius norm of ones times their scales, by hand."""
    spread = scales[torch.arange(shape[0]) // rows][:, torch.arange(shape[1]) // columns]
    return float(torch.linalg.norm(spread.double()))


@pytest.mark.parametrize(
    ("counts", "blocks", "configured"),
    [((1, 5), (128, 32), True), ((1, 5), (128, 32), False), ((4, 3), (32, 64), True), ((10, 2), (10, 128), False)],
)
def test_blocks_need_not_be_square_nor_divide_the_sides(
    counts: tuple[int, int], blocks: tuple[int, int], *, configured: bool, tmp_path: Path
) -> None:
    """By the configuration; without one, by the only power of two that fits."""
    scales = torch.rand(counts) + 0.5
    folder = saved(tmp_path, scales, blocks=list(blocks) if configured else None)
    (layer,) = esdmon.analyze(folder, measures=["frobenius_norm"])
    assert layer.measures["frobenius_norm"] == pytest.approx(norm_of(scales, *blocks), rel=1e-6)


def test_blocks_of_an_unknown_size_are_skipped(tmp_path: Path) -> None:
    """Of 130 columns with 7 scales each may have 19, 20 or 21."""
    (layer,) = esdmon.analyze(saved(tmp_path, torch.rand(1, 7), blocks=None))
    assert layer.status == "skipped"
    assert layer.reason == "packed numbers of an unknown layout: not read"


def test_blocks_of_experts_are_those_of_one(tmp_path: Path) -> None:
    """Three dimensions, of which the configuration names the last two."""
    scales = torch.rand(3, 1, 5) + 0.5
    folder = tmp_path
    save_file(
        {"experts.weight": torch.ones(3, 100, 130).to(torch.float8_e4m3fn), "experts.weight_scale_inv": scales},
        folder / "model.safetensors",
    )
    (folder / "config.json").write_text(json.dumps({"quantization_config": {"weight_block_size": [128, 32]}}))
    (layer,) = esdmon.analyze(folder, measures=["frobenius_norm"])
    expected = sum(norm_of(each, 128, 32) ** 2 for each in scales) ** 0.5
    assert layer.measures["frobenius_norm"] == pytest.approx(expected, rel=1e-5)


def test_scales_of_one_byte_are_exponents(tmp_path: Path) -> None:
    """2^(s − 127), as MXFP8 has them; of other integers no formula is known."""
    exponents = torch.randint(118, 130, (100, 5), dtype=torch.uint8)
    (layer,) = esdmon.analyze(saved(tmp_path, exponents, blocks=[1, 32]), measures=["frobenius_norm"])
    expected = norm_of(2.0 ** (exponents.float() - 127), 1, 32)
    assert layer.measures["frobenius_norm"] == pytest.approx(expected, rel=1e-5)
    (layer,) = esdmon.analyze(saved(tmp_path, exponents.int(), blocks=[1, 32]))
    assert layer.status == "skipped"


@pytest.mark.parametrize("sides", [(3,), (3, 1), (3, 100), (3, 1, 1), (3, 100, 1)])
def test_scales_of_experts_are_of_one_or_of_its_rows(sides: tuple[int, ...]) -> None:
    """Their sides are the first of the weight."""
    scales = torch.rand(sides) + 0.5
    codes = torch.ones(3, 100, 130).to(torch.float8_e4m3fn)
    (layer,) = esdmon.analyze({"experts.weight": codes, "experts.weight_scale": scales}, measures=["frobenius_norm"])
    expected = (scales.square().sum() * codes.numel() / scales.numel()).sqrt()
    assert layer.measures["frobenius_norm"] == pytest.approx(float(expected), rel=1e-5)


def test_scales_that_fit_neither_experts_nor_rows_are_skipped() -> None:
    """Blocks of rows without a number for each column are of no known layout."""
    codes = torch.ones(3, 100, 130).to(torch.float8_e4m3fn)
    (layer,) = esdmon.analyze({"experts.weight": codes, "experts.weight_scale": torch.rand(3, 7)})
    assert (layer.status, layer.reason) == ("skipped", "packed numbers of an unknown layout: not read")
