"""Add values to the row of a run that the user commits next.

A row of a run contains everything that was logged until it is committed, and the run's step counts rows. A sink that
commits rows of its own raises that step, and then W&B drops the rows that the user logs with `step=epoch`. So nothing
is committed here: values are logged with `commit=False` and without a step. This adds them to the row that the user
logs next, in any way, and changes nothing else in it. The remaining values are in the user's last row, or in a row at
the end of the run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    import wandb

    from esdmon.present.scalars import Namespace

STEP = "esdmon/step"
"""Key of the axis over which our values are drawn."""
HISTOGRAM_PARTS = ("_type", "values", "bins")
PICTURE_PARTS = ("_type", "sha256", "size", "path", "format", "width", "height")


class RunEndedError(RuntimeError):
    """The user has finished the run."""


@final
class NextRow:
    """Adds values to the row that the user commits next.

    Each key is tied to the axis `esdmon/step` by its exact name when it is first used: if two patterns match a key, a
    Trainer's `*` and one of ours, either may win.
    """

    def __init__(self, run: wandb.Run, namespace: Namespace) -> None:
        self._run = run
        self._namespace = namespace
        self._defined: set[str] = set()
        self._row_of_reading: int | None = None
        self.has_ended = False
        """True once an operation failed because the run was finished."""

    @property
    def has_last_reading(self) -> bool:
        """Return True if the row with the last reading is still to be committed."""
        return self._row_of_reading is not None and self._row_of_reading == self._number()

    @property
    def may_be_of_tensorboard(self) -> bool:
        """Return whether W&B makes rows of TensorBoard's files, too (`sync_tensorboard`); they are not counted here."""
        import wandb  # noqa: PLC0415 -- optional

        return bool(wandb.patched["tensorboard"])

    def add_reading(self, numbers: Mapping[str, float], x: float) -> None:
        """Add the numbers of a reading, drawn at `x`."""
        self._add(numbers, x, ())
        self._row_of_reading = self._number()

    def add_media(self, values: Mapping[str, Any], x: float, parts: Iterable[str]) -> None:
        """Add histograms or pictures, drawn at `x`.

        Args:
            values: W&B's media by key.
            x: position on the axis.
            parts: names of the parts that W&B stores of such a value. It matches each part with the patterns of
                `define_metric`, and if `*` has an axis it would put a stale value of that axis into the user's row.
        """
        self._add(values, x, parts)

    @contextmanager
    def while_open(self, what: str) -> Iterator[None]:
        """Raise `RunEndedError` if an operation on the run fails because the user has finished it.

        Args:
            what: name of the lost data, for the message.
        """
        from wandb.errors import UsageError  # noqa: PLC0415 -- optional

        try:
            yield
        except UsageError as error:
            if "finished" not in str(error):
                raise
            self.has_ended = True
            raise RunEndedError(
                f"the W&B run {self._run.id} was finished before the monitor was closed: {what} is not in it. Close "
                "the monitor before the run is finished"
            ) from None

    def _add(self, values: Mapping[str, Any], x: float, parts: Iterable[str]) -> None:
        axis = self._namespace(STEP)
        if axis not in self._defined:
            self._run.define_metric(axis, hidden=True)
        for key in values.keys() - self._defined:
            for name in (key, *(f"{key}.{part}" for part in parts)):
                self._run.define_metric(name, step_metric=axis)
        self._defined |= {axis, *values}
        if values:
            self._run.log({**values, axis: x}, commit=False)

    def _number(self) -> int | None:
        """Return the number of the row that is logged to now, or None if it is unknown.

        `run.step` of wandb 0.28 and later asks W&B's process for it and waits for the answer, up to 30 s: not in a
        training loop. Their `_local_step` is the `_step` of older versions.
        """
        number = getattr(self._run, "_local_step", getattr(self._run, "_step", None))
        return number if isinstance(number, int) else None
