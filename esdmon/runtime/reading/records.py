"""Define `ReadingRecords`, which makes the record of a reading, with its numbers or the reason why it has none."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeVar, final

from esdmon.isolation import Faults, describe, let_through
from esdmon.records import LayerReport
from esdmon.runtime.reading.failures import FailingReadings
from esdmon.runtime.reading.held_parameters import HeldParameters
from esdmon.runtime.reading.measuring import Measuring
from esdmon.runtime.reading.watched_model import WatchedModel
from esdmon.runtime.workers.measured import Measured
from esdmon.runtime.workers.source import Ratio
from esdmon.weights import Matrix, StepSampler, UnreadableError, layer_type_of

Finish = TypeVar("Finish", Callable[[], LayerReport], Callable[[], LayerReport] | None)


@final
class ReadingRecords:
    """Make the record of each reading, and count readings that fail.

    Args:
        model: the matrices of the model.
        held: the parameters that the optimizers hold.
        steps: samples of single steps.
        measuring: adds the phase and the measures of a spectrum.
        faults: counts readings that fail.
    """

    def __init__(
        self, model: WatchedModel, held: HeldParameters, steps: StepSampler, measuring: Measuring, faults: Faults
    ) -> None:
        self._model = model
        self._held = held
        self._steps = steps
        self._measuring = measuring
        self._faults = faults
        self._failing = FailingReadings(faults)

    def begin(self, matrix: Matrix, step: int, prepare: Callable[[LayerReport], Finish]) -> Finish:
        """Begin a reading, and return the function that finishes it.

        Args:
            matrix: the handle on the weight.
            step: optimizer steps taken.
            prepare: does what has to be done at this step, and returns the function that finishes the record that it
                is given. Where it fails, a function that gives the reason is returned.
        """
        begun = _blank(matrix, step)
        try:
            begun = self._begun(begun, matrix)
            return prepare(begun)
        except Exception as error:  # noqa: BLE001 -- reported by the function that finishes it
            let_through(error)
            return partial(self._not_read, begun, error)

    def _begun(self, blank: LayerReport, matrix: Matrix) -> LayerReport:
        """Return the record with the values that are known before the spectrum."""
        last = self._steps.last(matrix.name)
        return replace(
            blank,
            kind=layer_type_of(matrix),
            n_parameters=self._model.stack_size(matrix).n_elements,
            trainable=self._model.is_trainable(matrix.name),
            step_ratio=last.ratio,
            step_growth=last.growth,
            start_ratio=last.start_ratio,
            zero_gradient=last.zero_gradient,
            in_optimizer=self._held.holds(matrix),
            learning_rate=self._held.learning_rate(matrix),
            weight_decay=self._held.weight_decay(matrix),
        )

    def finish(self, measure: Callable[[], Measured], begun: LayerReport, moved: Ratio) -> LayerReport:
        """Return the record with the numbers of `measure()` and ‖ΔW‖/‖W‖ = `moved()`, or with the reason for none."""
        try:
            begun = replace(begun, update_ratio=moved())
            layer = self._measuring.record(begun, measure())
        except Exception as error:  # noqa: BLE001 -- reported in the record
            let_through(error)
            return self._not_read(begun, error)
        self._failing.worked(begun.name, begun.step)
        return layer

    def _not_read(self, begun: LayerReport, error: Exception) -> LayerReport:
        """Return the record with an error as its reason; only one that is not of the weight counts as a failure.

        Raises:
            Exception: an error that counts as a failure, if `faults` is strict.
        """
        if isinstance(error, UnreadableError):
            self._failing.worked(begun.name, begun.step)
            return replace(begun, status=error.status, reason=error.reason)
        if self._faults.strict:
            raise error
        self._failing.failed(begun.name, begun.step, error)
        return replace(begun, reason=describe(error))


def _blank(matrix: Matrix, step: int) -> LayerReport:
    """Return the record of a reading without any values."""
    return LayerReport(
        matrix.name,
        "failed",
        step,
        "not finished",
        view=matrix.view,
        aliases=matrix.aliases,
        computed=matrix.is_computed,
    )
