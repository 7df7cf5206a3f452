"""The parameters that optimizers of a host hold."""

from typing import Any

import torch
from torch import nn

from esdmon.trainers.optimizers import readable


class Foreign:
    """Has nothing of a torch optimizer but its groups."""

    def __init__(self, groups: Any) -> None:
        self.param_groups = groups


def test_torch_optimizers_are_returned() -> None:
    """One, or a list of them."""
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    assert readable(optimizer) == [optimizer]
    assert readable([optimizer, optimizer]) == [optimizer, optimizer]


def test_another_kind_has_a_stand_in_with_its_groups() -> None:
    """The list itself, with groups that are added later."""
    groups = [{"params": list(nn.Linear(2, 2).parameters())}]
    found = readable(Foreign(groups))
    assert found is not None
    assert found[0].param_groups is groups


def test_it_is_none_where_one_does_not_say_what_it_holds() -> None:
    """Also where there is no optimizer."""
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    assert readable([optimizer, Foreign([{"lr": 0.1}])]) is None
    assert readable(None) is None
    assert readable([]) is None
