"""Feed modules the identity in the place of inputs, so that they compute their matrices (inputs × outputs)."""

from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from esdmon.weights import (
    Matrix,
    Selection,
    Solver,
    discover,
    read_spectrum,
    solve_torch,
)

WIDTH, SIZE = 64, 16
INPUTS = torch.eye(WIDTH).unsqueeze(0)
"""A batch of one."""
CONFIG: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": WIDTH,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": WIDTH // SIZE,
    "pad_token_id": 0,
}
GROUPED = CONFIG | {"num_key_value_heads": 2, "num_local_experts": 3, "num_experts_per_tok": 2}
UNTURNED = (torch.ones(1, WIDTH, SIZE), torch.zeros(1, WIDTH, SIZE))
"""Cosines and sines of rotary positions that leave q and k alone."""
Heads = dict[str, Tensor]
"""Label -> (heads, inputs, outputs of a head)."""


def assert_same(matrix: Matrix, pieces: list[Tensor] | Tensor, solver: Solver = solve_torch) -> None:
    """The eigenvalues of WᵀW/N of each slice, N its longer side, are those of a float64 SVD."""
    lam = read_spectrum(matrix, precision="exact", solver=solver).by_slice
    singular = [torch.linalg.svdvals(piece.detach().double()).numpy() for piece in pieces]
    by_hand = [np.sort(values**2) / max(piece.shape) for values, piece in zip(singular, pieces, strict=True)]
    assert np.allclose(lam, np.stack(by_hand), rtol=1e-9, atol=1e-14)


def details(model: nn.Module, pattern: str) -> dict[str, Matrix]:
    """What is read where `layers=` names it, by name."""
    by_default = {matrix.name for matrix in discover(model).matrices}
    asked = {matrix.name: matrix for matrix in discover(model, selection=Selection(layers=[pattern])).matrices}
    assert not by_default & set(asked)
    return asked


def part(name: str, path: str, config: dict[str, Any]) -> Any:
    """A module of one of transformers' models with random weights, its biases zero."""
    model = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**config))
    for parameter_name, parameter in model.named_parameters():
        if "bias" in parameter_name.rpartition(".")[2]:
            nn.init.zeros_(parameter)
        else:
            nn.init.normal_(parameter, std=0.1)
    return model.get_submodule(path)


def handed_on(attention: Any, *args: Any, **kwargs: Any) -> Heads:
    """What attention gives to its interface."""
    caught: Heads = {}

    def catch(_: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_args: Any, **_kwargs: Any) -> Any:
        caught.update(q=query[0], k=key[0], v=value[0])
        return query.transpose(1, 2), None

    with patch.object(ALL_ATTENTION_FUNCTIONS, "get_interface", return_value=catch):
        attention(INPUTS, *args, **kwargs)
    return caught
