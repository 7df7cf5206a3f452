"""Details that are read on request against what their modules compute: heads, flattened convolutions; small slices."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from esdmon.weights import (
    Solver,
    UnreadableError,
    discover,
    read_spectrum,
    solve_lapack,
    solve_torch,
)
from tests.weights.layouts import GROUPED, INPUTS, SIZE, UNTURNED, WIDTH, assert_same, details, handed_on, part


@pytest.mark.parametrize("name", ["Llama", "Qwen3"])
def test_heads_of_separate_projections(name: str) -> None:
    """Queries have more heads than keys and values here; the output projection has none."""
    torch.manual_seed(0)
    attention = part(name, "layers.0.self_attn", GROUPED | {"head_dim": SIZE, "use_cache": False})
    if name == "Qwen3":
        attention.q_norm = attention.k_norm = nn.Identity()
    asked = {name.partition(".")[2]: matrix for name, matrix in details(attention, "*/head.*").items()}
    for label, heads in handed_on(attention, attention_mask=None, position_embeddings=UNTURNED).items():
        for number, head in enumerate(heads):
            assert_same(asked.pop(f"{label}_proj/head.{number}"), [head])
    assert not asked


def test_heads_of_torchs_attention() -> None:
    """As its forward splits them: by torch's own projection of the inputs, in runs of the size of a head."""
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(WIDTH, 4, bias=False)
    inputs = INPUTS.transpose(0, 1)
    project: Any = vars(functional)["_in_projection_packed"]
    q_k_v = project(inputs, inputs, inputs, attention.in_proj_weight)
    asked = details(attention, "*/head.*")
    for label, each in zip("qkv", q_k_v, strict=True):
        for number, head in enumerate(each.view(WIDTH, 4, SIZE).transpose(0, 1)):
            assert_same(asked.pop(f"MultiheadAttention.in_proj_weight/{label}/head.{number}"), [head])
    assert not asked


CONVOLUTIONS: dict[str, nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d] = {
    "2-D": nn.Conv2d(6, 20, 3, bias=False),
    "groups": nn.Conv1d(12, 24, 5, groups=2, bias=False),
    "transposed": nn.ConvTranspose2d(12, 18, 3, bias=False),
    "transposed, groups": nn.ConvTranspose2d(24, 12, 3, groups=2, bias=False),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_a_flattened_convolution_is_its_map_of_one_patch(kind: str) -> None:
    """Patches of one single input each, or single inputs that are spread over a patch; one block to a group."""
    layer = CONVOLUTIONS[kind]
    spread = isinstance(layer, nn.ConvTranspose2d)
    shape = (layer.in_channels, *(1 if spread else side for side in layer.kernel_size))
    n = int(np.prod(shape))
    outputs = layer(torch.eye(n).view(n, *shape)).flatten(1).detach()
    rows, columns = n // layer.groups, outputs.shape[1] // layer.groups
    blocks = [outputs[g * rows : (g + 1) * rows, g * columns : (g + 1) * columns] for g in range(layer.groups)]
    assert float(outputs.abs().sum()) == pytest.approx(float(sum(block.abs().sum() for block in blocks)))
    (matrix,) = details(layer, "*/flattened").values()
    assert_same(matrix, blocks)


@pytest.mark.parametrize("solver", [solve_torch, solve_lapack])
@pytest.mark.parametrize(
    "layer", [nn.Conv2d(1, 12, 5), nn.Conv2d(12, 12, 3, groups=12), nn.Bilinear(5, 1, 12)], ids=str
)
def test_slices_of_one_column(layer: nn.Conv2d | nn.Bilinear, solver: Solver) -> None:
    """Grey images, depthwise convolutions: each slice has one eigenvalue."""
    (matrix,) = discover(layer).matrices
    assert_same(matrix, matrix.to_stack(matrix.read()), solver)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_matrix_under_the_size_floor_is_skipped_whatever_it_holds(value: float) -> None:
    """Small weights are often zero before training, which is not a fault."""
    layer = nn.Linear(40, 2)
    nn.init.constant_(layer.weight, value)
    (matrix,) = discover(layer).matrices
    with pytest.raises(UnreadableError, match="2 eigenvalues; at least 10 are needed") as raised:
        read_spectrum(matrix)
    assert raised.value.status == "skipped"
