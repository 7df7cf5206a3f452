"""`Collector`: collect the readings of a due step that are finished, and give up those that are not."""

from dataclasses import replace
from typing import final

from esdmon.runtime.pipeline.dropped import DroppedReadings
from esdmon.runtime.pipeline.due_step import DueStep
from esdmon.runtime.workers.source import Answer, Task
from esdmon.schedule.priority import ReadPriority


@final
class Collector:
    """Collect readings, with what they cost.

    Args:
        priority: takes note of their cost, and of what is lost.
        dropped: counts what is lost.
    """

    def __init__(self, priority: ReadPriority, dropped: DroppedReadings) -> None:
        self._priority = priority
        self._dropped = dropped

    def is_complete(self, due: DueStep) -> bool:
        """Collect what is finished, and return whether that is all."""
        self.collect(due)
        return due.is_complete

    def collect(self, due: DueStep) -> None:
        """Collect what is finished."""
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

    def give_up(self, due: DueStep, *, elsewhere_only: bool = False) -> None:
        """Collect what is finished, and cancel the rest: all, or what is under way on other ranks."""
        tasks = [] if elsewhere_only else list(due.here)
        if due.elsewhere is not None:
            tasks.append(due.elsewhere)
        before = self._dropped.count
        for task in tasks:
            self._take(due, task, task.give_up())
        due.elsewhere = None
        if not elsewhere_only:
            due.here.clear()
        self._dropped.log_since(before, due.step)

    def _take(self, due: DueStep, task: Task, answer: Answer) -> None:
        asked = due.asked.intersection(task.names)
        missed = {name for name in asked if name not in answer or answer[name][0].status == "failed"}
        for name, (layer, seconds) in answer.items():
            due.seconds += seconds
            if name not in missed:  # some rank may have missed the plan: the reading before stays
                due.read[name] = replace(layer, host_step=due.host_step, extra=due.extra)
                is_readable = layer.status == "ok"
                self._priority.took(name, seconds, readable=is_readable, on_device=task.in_hook > 0)
        lost = {name for name in task.names if name not in answer} | missed
        self._dropped.count += len(lost - missed)
        due.missed |= missed
        for name in lost:
            self._priority.lost(name)
