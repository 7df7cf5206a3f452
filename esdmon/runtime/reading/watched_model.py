"""Define `WatchedModel`, which holds the matrices of a model, and finds them again if the model has changed."""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from typing import final

import torch
from torch import Tensor, nn

from esdmon.errors import InputError
from esdmon.records import Coverage, LayerReport
from esdmon.runtime.reading.changes import ChangeLog
from esdmon.weights import Matrix, Model, StackSize, Watched, describe_unreadable, nominal_seconds, structure
from esdmon.weights.checkpoint.mapping import Checkpoint

_log = logging.getLogger("esdmon")
_TRIES = 3  # more attempts after an error in the search for weights; our choice


@final
class WatchedModel:
    """The matrices of a model, with their sizes, and the parameters that are not read, as of the last `refresh`.

    Args:
        model: a module, or a mapping of names to tensors, which must not change.
        discover: finds the matrices of the model.

    Raises:
        InputError: for a model without matrices.
    """

    def __init__(self, model: Model, discover: Callable[[], Watched]) -> None:
        self._model = model
        self._discover = discover
        self._changes = ChangeLog()
        self._unreadable: list[str] = []
        self._structure: tuple[object, ...]
        self._tries = 0
        self._take_up(discover())
        self._trainable = self._trainable_now()

    @property
    def coverage(self) -> Coverage:
        """Return how much of the model is read."""
        return self._watched.coverage

    def named_parameters(self) -> Mapping[str, Tensor]:
        """Return all parameters of the model, also those that are not watched."""
        return dict(self._model.named_parameters()) if isinstance(self._model, nn.Module) else self._model

    @property
    def problems(self) -> Mapping[str, InputError]:
        """Return reasons why nothing, or not the selection, is read, if the model may be a part of a larger one."""
        return self._watched.problems

    def coverage_of(self, layers: Iterable[LayerReport], *, absent: str = "not read") -> Coverage:
        """Return how much of the model was read. Zero and non-finite weights count as read, failed ones do not.

        Args:
            layers: the readings of matrices.
            absent: why the other matrices were not read.
        """
        reasons = {layer.name: "" if layer.was_read else layer.reason for layer in layers}
        return self._watched.recount(dict.fromkeys(self.matrices, absent) | reasons)

    @property
    def on_accelerator(self) -> bool:
        """Return whether any weight is on an accelerator."""
        return bool(self._accelerators())

    def synchronizer(self) -> Callable[[], None]:
        """Return a function that synchronises the accelerators that hold weights."""
        # On other machines all parameters would be looked at in vain, at each due step.
        devices = self._accelerators() if torch.accelerator.is_available() else ()

        def synchronise() -> None:
            for device in devices:
                torch.accelerator.synchronize(device)

        return synchronise

    def refresh(self) -> bool:
        """Find the matrices again if the model has other parameters than before; called at the start of each due step.

        Returns:
            Whether the matrices have changed.

        Raises:
            InputError: if there is nothing left to read; the matrices are then unchanged.
        """
        if not isinstance(self._model, nn.Module):
            return False
        now, before = structure(self._model), dict.fromkeys(self.matrices)
        if now == self._structure:
            has_changed = self._retry()
            self._compare_trainable(before)
            return has_changed
        try:
            self._take_up(self._discover())
        except InputError:  # the same as long as the model is the same
            self._structure = now
            raise
        self._changes.parameters(before, self.matrices, self.coverage)
        self._compare_trainable(before)
        return True

    def _compare_trainable(self, names: Collection[str]) -> None:
        """Log which of the matrices `names` are frozen now, or not frozen any more."""
        before, self._trainable = self._trainable, self._trainable_now()
        if before != self._trainable:
            self._changes.trainable(before, self._trainable, [name for name in names if name in self.matrices])

    def _trainable_now(self) -> frozenset[str]:
        return frozenset(filter(self.is_trainable, self.matrices))

    def _retry(self) -> bool:
        """Repeat failed parts of the search for matrices a few times, since the failure may be temporary."""
        if not self._watched.failures or self._tries >= _TRIES:
            return False
        tries, before = self._tries + 1, self._watched.failures
        self._take_up(self._discover())
        self._tries = tries
        return self._watched.failures != before

    def nominal(self) -> dict[str, float]:
        """Return the estimated seconds of a reading by matrix, up to a common factor."""
        return {name: nominal_seconds(matrix) for name, matrix in self.matrices.items()}

    def size(self, name: str) -> int:
        """Return the bytes of a copy of a matrix, as of its last reading; 0 for one that cannot be read."""
        return self._bytes.get(name, 0)

    def n_elements(self, name: str) -> int:
        """Return the number of elements of a matrix, as of its last reading; 0 for one that cannot be read."""
        size = self._sizes.get(name)
        return 0 if size is None else size.n_elements

    def stack_size(self, matrix: Matrix) -> StackSize:
        """Return the size of a matrix; where its shape has changed, compute the bytes of a copy as well."""
        size = matrix.size()
        if size is not self._sizes.get(matrix.name):
            self._sizes[matrix.name] = size
            self._bytes[matrix.name] = size.n_elements * _itemsize(matrix)
        return size

    def is_trainable(self, name: str) -> bool:
        """Return whether any parameter behind a matrix requires a gradient.

        All matrices of a dict are trainable if none of its tensors requires one: `torch.func.grad` needs no such
        tensors.
        """
        return not self._says_what_trains or _requires_gradient(self.matrices.get(name))

    def _take_up(self, watched: Watched) -> None:
        self._watched = watched
        self.matrices: dict[str, Matrix] = {matrix.name: matrix for matrix in watched.matrices}
        """The matrices by name, in the model's order."""
        self._sizes: dict[str, StackSize] = {}
        self._bytes: dict[str, int] = {}
        for matrix in watched.matrices:
            with suppress(Exception):  # the reading reports why
                self.stack_size(matrix)
        is_known = isinstance(self._model, nn.Module | Checkpoint)  # tensors of a file are not trained
        self._says_what_trains = is_known or any(map(_requires_gradient, watched.matrices))
        self._tries = 0
        self._structure = ()
        if isinstance(self._model, nn.Module):  # other models are not trained, and their report has the reasons
            self._structure = structure(self._model)
            self._log_unreadable(describe_unreadable(watched))

    def _log_unreadable(self, sentences: list[str]) -> None:
        level = logging.WARNING if _is_first_rank() else logging.DEBUG
        for sentence in sentences:
            if sentence not in self._unreadable:
                _log.log(level, "esdmon: %s", sentence)
        self._unreadable = sentences

    def _accelerators(self) -> set[torch.device]:
        weights = self._model.parameters() if isinstance(self._model, nn.Module) else self._model.values()
        return {weight.device for weight in weights if weight.device.type not in ("cpu", "meta")}


def _requires_gradient(matrix: Matrix | None) -> bool:
    with suppress(Exception):  # the parameter does not exist any more
        return matrix is not None and any(parameter.requires_grad for parameter in matrix.parameters())
    return False


def _itemsize(matrix: Matrix) -> int:
    """Return the bytes of an element of a copy; 0 if the weight cannot be read."""
    with suppress(Exception):  # the reading reports why
        return max([4, *(parameter.element_size() for parameter in matrix.parameters())])
    return 0


def _is_first_rank() -> bool:
    """Return whether this is rank 0 of its job, or a single process; the other ranks would log the same."""
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0
