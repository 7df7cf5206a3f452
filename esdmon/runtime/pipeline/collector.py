"""Define `Collector`, which collects finished readings of due steps, and cancels unfinished ones."""

import time
from collections import deque
from dataclasses import replace
from typing import final

from esdmon.runtime.pipeline.dropped import DroppedReadings
from esdmon.runtime.pipeline.due_step import DueStep
from esdmon.runtime.workers.source import Answer, Task
from esdmon.schedule.priority import ReadPriority


@final
class Collector:
    """Collect finished readings, with their costs.

    Args:
        priority: records the costs, and lost readings.
        dropped: counts lost readings.
        due: the due steps that are not reported yet, in step order; the caller appends to them.
    """

    def __init__(self, priority: ReadPriority, dropped: DroppedReadings, due: deque[DueStep]) -> None:
        self._priority = priority
        self._dropped = dropped
        self._due = due

    def unfinished(self) -> list[DueStep]:
        """Collect finished readings, and return the due steps with unfinished ones."""
        for due in self._due:
            self.collect(due)
        return [due for due in self._due if not due.is_complete]

    def take_complete(self, steps: int) -> DueStep | None:
        """Return the earliest due step and remove it, if it is complete; else None.

        Args:
            steps: number of steps so far, to decide whether to cancel readings of other ranks.
        """
        if not self._due:
            return None
        first = self._due[0]
        if time.monotonic() > first.until and steps >= first.until_step:
            self._give_up(first, [])
        self.collect(first)
        return self._due.popleft() if first.is_complete else None

    def give_up(self) -> None:
        """Collect finished readings, cancel the rest, and log how many are lost."""
        for due in self._due:
            self.collect(due)
            here = list(due.here)
            due.here.clear()
            self._give_up(due, here)

    def collect(self, due: DueStep) -> None:
        """Collect the finished readings of a due step."""
        while due.here:
            task = due.here.popleft()
            answer = task.poll()
            if answer is None:
                due.here.appendleft(task)
                break
            self._take(due, task, answer)
        if due.elsewhere is not None:
            answer = due.elsewhere.poll()
            if answer is not None:
                task, due.elsewhere = due.elsewhere, None
                self._take(due, task, answer)

    def _give_up(self, due: DueStep, here: list[Task]) -> None:
        """Cancel some readings of this process, and the unfinished readings on other ranks."""
        before = self._dropped.count
        for task in here if due.elsewhere is None else [*here, due.elsewhere]:
            self._take(due, task, task.give_up())
        due.elsewhere = None
        self._dropped.log_since(before, due.step)

    def _take(self, due: DueStep, task: Task, answer: Answer) -> None:
        unanswered = set(task.names) - answer.keys()
        asked = due.asked.intersection(task.names)
        missed = {name for name in asked if name in unanswered or answer[name][0].status == "failed"}
        for name, (layer, seconds) in answer.items():
            due.seconds += seconds
            if name not in missed:  # if a rank may have missed the plan, the previous reading is kept
                due.read[name] = replace(layer, host_step=due.host_step, extra=due.extra)
                is_readable = layer.status == "ok"
                self._priority.took(name, seconds, readable=is_readable, on_device=task.in_hook > 0)
        self._dropped.count += len(unanswered - missed)
        due.missed |= missed
        for name in unanswered | missed:
            self._priority.lost(name)
