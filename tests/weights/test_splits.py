"""Which part of a weight a rank holds, against the split itself."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from esdmon.schedule.fragments import Fragment, covers
from esdmon.weights import part_of
from esdmon.weights.splits import Split, fragment_of

Plan = list[tuple[int, int, int]]
"""Side, parts and blocks of each split."""


@st.composite
def plans(draw: st.DrawFn) -> tuple[tuple[int, int], Plan]:
    shape = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    split = st.tuples(st.integers(0, 1), st.integers(1, 3), st.integers(1, 3))
    return shape, draw(st.lists(split, max_size=3))


def chunks(tensor: Tensor, count: int, side: int) -> list[Tensor]:
    """As `torch.chunk`, with empty ones at the end."""
    found = list(tensor.chunk(count, dim=side))
    return found + [tensor.narrow(side, 0, 0)] * (count - len(found))


def local(whole: Tensor, plan: Plan, place: tuple[int, ...]) -> Tensor:
    """What one rank holds: of each block its part, one behind the other."""
    for (side, parts, blocks), index in zip(plan, place, strict=True):
        whole = torch.cat([chunks(block, parts, side)[index] for block in chunks(whole, blocks, side)], dim=side)
    return whole


@given(plans())
@settings(max_examples=300, deadline=None)
def test_a_fragment_is_what_the_rank_holds(drawn: tuple[tuple[int, int], Plan]) -> None:
    """Of each rank; those of all cover the weight. A part that cannot be a box is an error, which says so."""
    shape, plan = drawn
    whole = torch.arange(shape[0] * shape[1]).view(shape)
    fragments, grids = [], set()
    try:
        for place in product(*(range(parts) for _, parts, _ in plan)):
            splits = [
                Split(side, parts, index, blocks) for (side, parts, blocks), index in zip(plan, place, strict=True)
            ]
            grid, fragment = fragment_of(shape, splits)
            held = local(whole, plan, place)
            grids.add(grid)
            if fragment is None:
                assert held.numel() == 0
            else:
                fragments.append(fragment)
                assert torch.equal(part_of(whole.view(grid), fragment).reshape(held.shape), held)
    except ValueError as error:
        assert str(error).endswith(("equal blocks", f"of {shape[0]}", f"of {shape[1]}"))  # noqa: PT017
    else:
        assert len(grids) == 1
        assert covers(fragments, grids.pop())


@pytest.mark.parametrize(
    "plan", [[(0, 2, 1)], [(0, 2, 2)], [(1, 3, 2)], [(0, 2, 2), (0, 2, 1)], [(0, 2, 1), (1, 2, 2)]]
)
def test_even_splits_are_boxes(plan: Plan) -> None:
    """Rows, blocks of rows and of columns, FSDP2 over tensor parallel, experts over halves."""
    for place in product(*(range(parts) for _, parts, _ in plan)):
        splits = [Split(side, parts, index, blocks) for (side, parts, blocks), index in zip(plan, place, strict=True)]
        _, fragment = fragment_of((12, 12), splits)
        assert fragment is not None
        assert fragment.n_elements * len(list(product(*(range(parts) for _, parts, _ in plan)))) == 144


def test_unequal_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="9 cannot be divided into 2 equal blocks"):
        fragment_of((9, 4), [Split(0, 2, 0, blocks=2)])


def test_fragments_that_overlap_do_not_cover() -> None:
    """As many elements as the weight has, but none of them at its end."""
    assert not covers([Fragment((0, 0), (2, 4)), Fragment((1, 0), (2, 4))], (4, 4))
    assert not covers([Fragment.interval(0, 8), Fragment.interval(4, 12)], (4, 4))
    assert covers([Fragment.interval(0, 8), Fragment.interval(8, 16)], (4, 4))
