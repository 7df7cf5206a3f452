"""Define `LocalParts`: the parts of weights on this rank, with their table, copies of fragments, and whole matrices.

In the training's thread a sharded weight is only accessed by `to_local()` and copied: there is neither a collective nor
an operation on a DTensor.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import final

import torch
from torch import Tensor

from esdmon.runtime.ranks.fragment_exchange import FragmentCopy, Moved
from esdmon.runtime.ranks.holdings import Holder, Listed, Part
from esdmon.runtime.ranks.parts import Fetch, Squares
from esdmon.runtime.reading.watched_model import WatchedModel
from esdmon.weights import (
    Matrix,
    Shard,
    Transfers,
    box_of,
    filled,
    local_part,
    n_parameters,
    nominal_seconds,
    part_of,
    sample_matrix,
    sample_tensor,
    sum_of_squares,
)

_CONTENT = 16  # elements of a fragment that are compared to recognise replicas; our choice
_SAMPLE = 1024  # sampled elements of a fragment that measure its move; our choice


@final
class LocalParts:
    """The parts of sharded weights on this rank, and the whole weights that are assembled.

    Args:
        model: the matrices of the model.
        transfers: copy tensors from an accelerator to the CPU.
    """

    def __init__(self, model: WatchedModel, transfers: Transfers) -> None:
        self._model = model
        self._transfers = transfers
        self._shards: dict[str, tuple[Tensor, Shard]] = {}
        self._samples: dict[str, Callable[[], Tensor]] = {}

    def is_here(self, name: str) -> bool:
        """Return whether this rank holds all of a matrix, and so can read it alone."""
        matrix = self._model.matrices.get(name)
        return matrix is not None and matrix.is_here

    def has(self, name: str) -> bool:
        """Return whether this rank's model has a matrix."""
        return name in self._model.matrices

    def holdings(self) -> tuple[dict[str, Listed], dict[str, Part]]:
        """Return the matrices of this rank's model, and its sharded parameters."""
        matrices: dict[str, Listed] = {}
        self._shards = {}
        for name, matrix in self._model.matrices.items():
            is_sharded = bool(matrix.shards) and not matrix.unreadable
            matrices[name] = Listed(
                nominal_seconds(matrix),
                parameters=matrix.parameter_names if is_sharded else (),
                content="" if is_sharded else _content(_sample(matrix)),
                size=0 if matrix.detail else _size(matrix),
                side=_side(matrix),
            )
            if is_sharded:
                self._shards |= zip(matrix.parameter_names, matrix.shards, strict=True)
        return matrices, {parameter: _part(shard) for parameter, (_, shard) in self._shards.items()}

    def has_fragment(self, parameter: str) -> bool:
        """Return whether this rank holds a fragment of a parameter."""
        return parameter in self._shards and self._shards[parameter][1].fragment is not None

    def size(self, parameter: str) -> int:
        """Return the bytes of this rank's fragment of a parameter."""
        shard = self._shards[parameter][1]
        return 0 if shard.fragment is None else shard.fragment.n_elements * shard.dtype.itemsize

    def whole_size(self, parameter: str) -> int:
        """Return the bytes of a whole parameter; this rank may hold only a fragment of it."""
        shard = self._shards[parameter][1]
        return math.prod(shard.shape) * shard.dtype.itemsize

    def copy(self, parameter: str) -> Callable[[], memoryview]:
        """Begin to copy this rank's fragment, and return the function that gives the bytes of the copy."""
        read = self._transfers.copy(self._shards[parameter][1].local())
        return lambda: _bytes(read())

    def mark(self, parameter: str) -> Callable[[], Moved]:
        """Return the function that returns how far this rank's fragment has moved since the last call; NaN at first."""
        local = self._shards[parameter][1].local()
        now = self._transfers.fetch(sample_tensor(local, _SAMPLE)).read
        before, self._samples[parameter] = self._samples.get(parameter), now
        if before is None:
            return lambda: Moved(math.nan, math.nan)
        return partial(_moved, before, now, local.numel())

    def squares(self, names: Iterable[str]) -> tuple[Squares, float]:
        """Compute Σ wᵢⱼ² of this rank's parts of some matrices, or queue that on their device."""
        sums: dict[torch.device, dict[str, Tensor]] = defaultdict(dict)
        seconds = 0.0
        for name in names:
            with suppress(Exception):  # the reading reports why
                matrix = self._model.matrices[name]
                if matrix.region is None:
                    continue
                local = local_part(matrix.region, matrix.shards[0][1])
                if local.is_contiguous() or self._transfers.has_room(local.device, local.nbytes):  # else it is copied
                    sums[local.device][name], beside = sum_of_squares(local)
                    seconds += beside
        fetched = {tuple(own): self._transfers.fetch(torch.stack([*own.values()])) for own in sums.values()}

        def read() -> dict[str, float] | None:
            if self._transfers.is_capturing() or not all(each.is_there() for each in fetched.values()):
                return None
            return {
                name: square
                for names, each in fetched.items()
                for name, square in zip(names, each.read().tolist(), strict=True)
            }

        return read, seconds

    @contextmanager
    def assembled(
        self, parameters: Mapping[str, Sequence[Holder]], own: Mapping[str, FragmentCopy], fetch: Fetch
    ) -> Iterator[float]:
        """Put whole parameters together, so that in this thread and block their matrices can be read.

        Args:
            parameters: the holders of all fragments, by this rank's names of the parameters.
            own: copies of this rank's fragments.
            fetch: fetches the other fragments.

        Yields:
            ‖ΔW‖/‖W‖ since the fragments were last copied, from their samples.

        Raises:
            Exception: any exception of `fetch`.
        """
        whole: dict[int, Tensor] = {}
        moved: list[Moved] = []
        try:
            for name, holders in parameters.items():
                stand_in, shard = self._shards[name]
                whole[id(stand_in)] = tensor = torch.empty(shard.shape, dtype=shard.dtype)
                moved += [self._place(name, tensor, holder, own.get(name), fetch) for holder in holders]
            change, norm = sum(each.change for each in moved), sum(each.norm for each in moved)
            with filled(whole):
                yield math.sqrt(change / norm) if norm > 0 else math.nan
        finally:
            whole.clear()

    def _place(self, name: str, whole: Tensor, holder: Holder, own: FragmentCopy | None, fetch: Fetch) -> Moved:
        """Write one fragment to its place."""
        shard = self._shards[name][1]
        target = part_of(whole.view(shard.box_shape), holder.fragment)
        if own is not None and holder.fragment == shard.fragment:
            read, moved_so_far = own
            moved = moved_so_far()
            target.copy_(torch.frombuffer(read(), dtype=whole.dtype).view(target.shape))
        elif target.is_contiguous():
            moved = fetch(name, holder, _bytes(target))
        else:
            part = torch.empty(target.shape, dtype=whole.dtype)
            moved = fetch(name, holder, _bytes(part))
            target.copy_(part)
        return moved


def _part(shard: Shard) -> Part:
    content = _content(sample_tensor(shard.local(), _CONTENT)) if shard.fragment is not None else ""
    return Part(tuple(shard.box_shape), shard.dtype.itemsize, shard.fragment, content, shard.group)


def _moved(before: Callable[[], Tensor], now: Callable[[], Tensor], count: int) -> Moved:
    """Compare two samples of `count` elements."""
    was, is_now = before().double(), now().double()
    if was.shape != is_now.shape or not was.numel():
        return Moved(math.nan, math.nan)
    share = count / was.numel()
    return Moved(share * float((is_now - was).square().sum()), share * float(was.square().sum()))


def _sample(matrix: Matrix) -> Tensor:
    with suppress(Exception):  # the reading reports why
        return sample_matrix(matrix, _CONTENT)
    return torch.empty(0)


def _content(sample: Tensor) -> str:
    return hashlib.blake2b(sample.cpu().double().numpy().tobytes(), digest_size=6).hexdigest()


def _size(matrix: Matrix) -> int:
    with suppress(Exception):
        return n_parameters(matrix)
    return 0


def _side(matrix: Matrix) -> int:
    """Return the longer side of a parameter, or of a region of one sharded parameter; 0 for any other matrix."""
    is_region = matrix.region is not None and box_of(matrix.region, matrix.shards[0][1]) is not None
    with suppress(Exception):
        return max(matrix.stack_shape()[1:]) if is_region or matrix.is_plain else 0
    return 0


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]  # numpy of Python 3.11
