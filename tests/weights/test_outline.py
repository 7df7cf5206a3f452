"""Copies of a model with stand-ins for its shards."""

import torch
from torch import nn

from esdmon.weights.outline import Outline
from esdmon.weights.shard import Shard


class Memory(nn.Module):
    """A memory of the user's own that learns, and is empty at first."""

    def __init__(self) -> None:
        super().__init__()
        self.keys = nn.Linear(4, 8)

    def __len__(self) -> int:
        return 0


def test_a_module_of_length_zero_has_a_stand_in_too() -> None:
    """Its truth value says nothing about its weights."""
    model = nn.Sequential(Memory(), nn.Linear(4, 4))
    keys = model.get_submodule("0.keys")
    parameter = keys.get_parameter("weight")
    shard = Shard(parameter, torch.Size((16, 4)), parameter.dtype)
    outline = Outline(model, {id(keys): {"weight": shard}})
    stand_in = outline.model.get_parameter("0.keys.weight")
    assert outline.shard_of(stand_in) is shard
    assert stand_in.shape == (16, 4)
    assert outline.model.get_submodule("1") is model[1]
