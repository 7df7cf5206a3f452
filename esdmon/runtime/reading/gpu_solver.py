"""Define `GpuSolver`, which chooses the eigenvalue problems that a GPU solves in the hook, and handles its failures."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TypeVar, final

import torch

from esdmon.errors import UnreadableError
from esdmon.isolation import Faults
from esdmon.weights import Matrix, Transfers, bytes_on_device, seconds_on_device

Found = TypeVar("Found")
_SOLVER = "the eigenvalue solver on the GPU"  # in log lines


@final
class GpuSolver:
    """Choose the matrices that a GPU solves: large whole parameters of at most 32 bits, if there is memory.

    Args:
        transfers: return which tensors are on a GPU, and its free memory.
        faults: counts failures. After a failure of the GPU for a matrix, threads read that matrix.
    """

    def __init__(self, transfers: Transfers, faults: Faults) -> None:
        self._transfers = transfers
        self._faults = faults
        self._matrices: dict[str, Matrix] = {}
        self._refused: set[str] = set()
        self._warm: set[torch.device] = set()
        self.seconds: Mapping[str, float] = {}
        """Estimates for the matrices that a GPU may solve, if they are on one."""

    def keep(self, matrices: Mapping[str, Matrix]) -> None:
        """Replace the matrices."""
        seconds: dict[str, float] = {}
        for name, matrix in matrices.items():
            with suppress(Exception):  # the reading reports why
                estimate = seconds_on_device(matrix) if matrix.is_plain else None
                if estimate is not None and matrix.read().element_size() <= 4:
                    seconds[name] = estimate
        self.seconds = seconds
        self._matrices = {name: matrices[name] for name in seconds}

    @property
    def is_useful(self) -> bool:
        """Return whether any of these matrices is on a GPU."""
        return any(self._transfers.is_accelerator(matrix.read().device) for matrix in self._matrices.values())

    def solvable(self) -> frozenset[str]:
        """Return the matrices that a GPU can solve now."""
        if self._faults.disabled(_SOLVER):
            return frozenset()
        has_room: dict[tuple[torch.device, int], bool] = {}
        found: dict[str, torch.device] = {}
        for name, matrix in self._matrices.items():
            with suppress(Exception):  # the reading reports why
                device = matrix.read().device
                if name in self._refused or not self._transfers.is_accelerator(device):
                    continue
                size = bytes_on_device(matrix)
                if (device, size) not in has_room:
                    has_room[device, size] = self._transfers.has_room(device, size)
                if has_room[device, size]:
                    found[name] = device
        for device in {*found.values()} - self._warm:
            self._warm.add(device)
            with suppress(Exception):  # the first problem starts the solver, which takes longer than later ones
                torch.linalg.eigvalsh(torch.eye(2, dtype=torch.float64, device=device))
        return frozenset(found)

    def solve(self, name: str, step: int, compute: Callable[[], Found]) -> Found | None:
        """Return the computed numbers; None after a failure, so that a thread reads.

        Raises:
            UnreadableError: for a weight that gives no spectrum.
            Exception: an error of the GPU, only with `strict=True`.
        """
        try:
            found = compute()
        except UnreadableError:
            raise
        except Exception as error:
            if self._faults.strict:
                raise
            self._refused.add(name)
            self._faults.record(_SOLVER, step, error)
            return None
        self._faults.worked(_SOLVER, step)
        return found
