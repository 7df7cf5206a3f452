"""When other callbacks, and schedulers, look at the numbers of ours that they monitor."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

from esdmon.trainers.options import PREFIX


@dataclass
class Looks:
    """A schedule that is due at the last step before somebody looks, so that what is seen is of that step.

    Without a reading there would be no number the first time, which ends the training, and later an old one, which
    EarlyStopping takes for a number that no longer improves. It is the same on all ranks.
    """

    monitored: dict[str, str] = field(default_factory=dict)
    """Names of numbers of ours, with the class that monitors each."""
    saves_every: tuple[int, ...] = ()
    """Steps between the checkpoints of a ModelCheckpoint that saves by steps."""
    is_any_time: bool = False
    """Whether somebody looks after some time, or after each step: then it needs a first number at once."""
    is_now: bool = False
    """Whether somebody looks after this step."""
    is_first: bool = True

    @classmethod
    def of(cls, trainer: Any) -> Self:
        """Return those of a Trainer's callbacks and schedulers that monitor a number of ours."""
        callbacks = [each for each in trainer.callbacks if str(getattr(each, "monitor", "")).startswith(PREFIX)]
        schedulers = [
            each for each in trainer.lr_scheduler_configs if str(getattr(each, "monitor", "")).startswith(PREFIX)
        ]
        monitored = {callback.monitor: type(callback).__name__ for callback in callbacks}
        monitored |= {each.monitor: type(each.scheduler).__name__ for each in schedulers}
        return cls(
            monitored=monitored,
            saves_every=tuple(getattr(callback, "_every_n_train_steps", 0) or 0 for callback in callbacks),
            is_any_time=any(getattr(callback, "_train_time_interval", None) is not None for callback in callbacks)
            or any(each.interval == "step" for each in schedulers)
            or (bool(monitored) and not isinstance(trainer.val_check_batch, int | float)),
        )

    def __call__(self, _step: int) -> bool:
        """Return whether somebody looks after the steps that are counted now."""
        return self.is_now

    def look(self, trainer: Any, batch: int) -> bool:
        """Find out, after a batch that has stepped, whether somebody looks before the next step."""
        self.is_now = bool(self.monitored) and (
            (self.is_first and self.is_any_time)
            or trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
            or trainer.global_step == trainer.max_steps
            or any(steps > 0 and trainer.global_step % steps == 0 for steps in self.saves_every)
            or _is_validated(trainer, batch)
        )
        self.is_first = False
        return self.is_now


def _is_validated(trainer: Any, batch: int) -> bool:
    """Return whether validation begins before the next optimizer step."""
    interval = trainer.val_check_batch
    if not isinstance(interval, int) or interval < 1:
        return False
    counted = trainer.fit_loop.epoch_loop.total_batch_idx if trainer.check_val_every_n_epoch is None else batch
    return any((counted + ahead) % interval == 0 for ahead in range(1, trainer.accumulate_grad_batches + 1))
