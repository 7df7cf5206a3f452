"""Find the callbacks and schedulers that monitor a metric of esdmon, and the steps at which they use it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

from esdmon.trainers.metrics import PREFIX


@dataclass
class Observers:
    """A schedule that is due at the last step before an observer reads a metric, so that the metric is up to date.

    Without such a reading the metric would first be NaN, which ends the training, and later outdated, which
    EarlyStopping would treat as no improvement. All ranks make the same decision.
    """

    monitored: dict[str, str] = field(default_factory=dict)
    """Names of the monitored metrics of esdmon, each with the class that monitors it."""
    saves_every: tuple[int, ...] = ()
    """Steps between the checkpoints of each ModelCheckpoint that saves by steps; 0 for others."""
    reads_any_time: bool = False
    """True if an observer reads after some time, or after each step, so that a first value is needed at once."""
    reads_now: bool = False
    """True if an observer reads after this step."""
    is_first: bool = True
    """True until the first step was checked."""

    @classmethod
    def of(cls, trainer: Any) -> Self:
        """Return the callbacks and schedulers of a Trainer that monitor a metric of esdmon."""
        callbacks = [each for each in trainer.callbacks if _monitors_ours(each)]
        schedulers = [each for each in trainer.lr_scheduler_configs if _monitors_ours(each)]
        monitored = {callback.monitor: type(callback).__name__ for callback in callbacks}
        monitored |= {each.monitor: type(each.scheduler).__name__ for each in schedulers}
        return cls(
            monitored=monitored,
            saves_every=tuple(getattr(callback, "_every_n_train_steps", 0) or 0 for callback in callbacks),
            reads_any_time=any(getattr(callback, "_train_time_interval", None) is not None for callback in callbacks)
            or any(each.interval == "step" for each in schedulers)
            or (bool(monitored) and not isinstance(trainer.val_check_batch, int | float)),
        )

    def __call__(self, _step: int) -> bool:
        """Return whether an observer reads after the steps that are counted now."""
        return self.reads_now

    def check(self, trainer: Any, batch: int) -> bool:
        """Return whether an observer reads before the next step. Call it after each batch with an optimizer step."""
        self.reads_now = bool(self.monitored) and (
            (self.is_first and self.reads_any_time)
            or trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
            or trainer.global_step == trainer.max_steps
            or any(steps > 0 and trainer.global_step % steps == 0 for steps in self.saves_every)
            or _is_validated(trainer, batch)
        )
        self.is_first = False
        return self.reads_now


def _monitors_ours(observer: Any) -> bool:
    return str(getattr(observer, "monitor", "")).startswith(PREFIX)


def _is_validated(trainer: Any, batch: int) -> bool:
    """Return whether validation begins before the next optimizer step."""
    interval = trainer.val_check_batch
    if not isinstance(interval, int) or interval < 1:
        return False
    counted = trainer.fit_loop.epoch_loop.total_batch_idx if trainer.check_val_every_n_epoch is None else batch
    return any((counted + ahead) % interval == 0 for ahead in range(1, trainer.accumulate_grad_batches + 1))
