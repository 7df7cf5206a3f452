"""Which elements of a sharded parameter are one matrix, and which of them a rank holds."""

import math
from collections.abc import Sequence
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from esdmon.errors import UnreadableError
from esdmon.schedule.fragments import Fragment, Region
from esdmon.weights import box_of, local_part, part_of
from esdmon.weights.shard import Shard


def numbered(*shape: int) -> Tensor:
    """Return a tensor whose elements are their places in the flattened tensor."""
    return torch.arange(math.prod(shape), dtype=torch.float64).reshape(shape)


def region_of(view: Tensor) -> Region:
    return Region.of(int(view.storage_offset()), view.shape, view.stride())


@st.composite
def views(draw: st.DrawFn) -> Tensor:
    """Draw a view of a numbered tensor: some sides cut, each in blocks or every so many, and sides in any order."""
    view = numbered(*draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    for side in range(view.dim()):
        start = draw(st.integers(0, view.shape[side] - 1))
        stop = draw(st.integers(start + 1, view.shape[side]))
        index = [slice(None)] * view.dim()
        index[side] = slice(start, stop, draw(st.integers(1, 2)))
        view = view[tuple(index)]
    return view.permute(draw(st.permutations(range(view.dim()))))


@given(view=views(), data=st.data())
def test_a_region_is_a_box_where_its_elements_are(view: Tensor, data: st.DataObject) -> None:
    """Whatever shape the parameter is given: the box has the same elements, and none only where no box has them."""
    whole = view._base if view._base is not None else view
    total = whole.numel()
    length = data.draw(st.sampled_from([n for n in range(1, total + 1) if total % n == 0]))
    shape = (total // length, length)
    elements = set(view.flatten().tolist())
    box = region_of(view).box(shape)
    if box is not None:
        assert set(part_of(numbered(*shape), box).flatten().tolist()) == elements
        return
    places = [(int(at) // length, int(at) % length) for at in elements]
    rows, columns = ({place[side] for place in places} for side in (0, 1))
    hull = math.prod(max(side) - min(side) + 1 for side in (rows, columns))
    assert hull > len(elements)


WHOLE = (6, 8)
SPLITS: dict[str, Sequence[Fragment]] = {
    "rows": [Fragment((0, 0), (4, 8)), Fragment((4, 0), (2, 8))],
    "columns": [Fragment((0, 0), (6, 3)), Fragment((0, 3), (6, 5))],
    "intervals": [Fragment.interval(0, 21), Fragment.interval(21, 48)],
    "one has all": [Fragment.whole(WHOLE), Fragment((6, 0), (0, 8))],
}


def shards(split: str) -> list[Shard]:
    whole = numbered(*WHOLE)
    return [
        Shard(whole, whole.shape, whole.dtype, fragment, partial(part_of, whole, fragment))
        for fragment in SPLITS[split]
    ]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("region", ["all", "rows", "columns"])
def test_the_parts_of_ranks_make_up_a_region(split: str, region: str) -> None:
    """Each element is in the part of one rank; columns are not one block of an interval of the flattened parameter."""
    whole = numbered(*WHOLE)
    part = {"all": whole.T, "rows": whole[2:5], "columns": whole[:, 2:4]}[region]
    if (split, region) == ("intervals", "columns"):
        for shard in shards(split):
            assert box_of(region_of(part), shard) is None
            with pytest.raises(UnreadableError, match="not one block of this rank's part"):
                local_part(region_of(part), shard)
        return
    held = [local_part(region_of(part), shard).flatten() for shard in shards(split)]
    assert sorted(torch.cat(held).tolist()) == sorted(part.flatten().tolist())


def test_blocks_of_a_side_are_found_in_the_shape_in_which_a_fragment_is_a_box() -> None:
    """Gate and up-projection in one parameter, of each of which a rank holds a half."""
    whole = numbered(8, 3)
    halves = [whole.view(2, 4, 3)[:, :2], whole.view(2, 4, 3)[:, 2:]]
    for start, half in zip((0, 2), halves, strict=True):
        local = half.reshape(4, 3)  # as tensor parallelism holds it
        fragment = Fragment((0, start, 0), (2, 2, 3))
        shard = Shard(
            nn.Parameter(local),
            whole.shape,
            whole.dtype,
            fragment,
            local.clone,
            grid=torch.Size((2, 4, 3)),
        )
        gate, up = (local_part(region_of(part), shard) for part in (whole[:4], whole[4:]))
        assert (gate.flatten().tolist(), up.flatten().tolist()) == (
            half[0].flatten().tolist(),
            half[1].flatten().tolist(),
        )
