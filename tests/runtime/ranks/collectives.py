"""Steps of a monitor in which no rank may call a collective."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from torch import distributed
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode

COLLECTIVES = ("all_reduce", "all_gather", "all_gather_object", "broadcast", "barrier", "gather", "reduce", "new_group")


@contextmanager
def no_collective() -> Iterator[CommDebugMode]:
    """Raise in each, and count what DTensors do by themselves."""

    def refused(*_args: object, **_options: object) -> None:
        raise AssertionError("a collective")

    with pytest.MonkeyPatch.context() as patch, CommDebugMode() as counted:  # type: ignore[no-untyped-call]
        for name in COLLECTIVES:
            patch.setattr(distributed, name, refused)
        for name in ("full_tensor", "redistribute"):
            patch.setattr(DTensor, name, refused)
        yield counted
