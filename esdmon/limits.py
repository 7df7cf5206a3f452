"""`Limits`: the times, sizes and counts that are fixed for users, and that tests set."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Limits of the parts of a monitor. Every default is our choice, for the reason beside it."""

    advance_seconds: float = 2.0
    """Seconds that may be spent before they are earned, and are paid back: a first short run of a small model is read
    whole at each due step, and a run of `advance_seconds / budget`, 200 s at 1 %, has not cost more than its share."""
    copied_bytes: int = 256 << 20
    """Bytes of copied weights that wait for the thread; a larger matrix is copied when nothing else waits."""
    due_steps_under_way: int = 4
    """Due steps whose readings may be under way; until the first is finished no more are begun."""
    failures: int = 3
    """Failures in a row after which a part is paused."""
    first_pause: int = 10
    """Due steps of the first pause; each further one is twice as long."""
    longest_pause: int = 320
    """Due steps that a pause lasts at most, so that a part that recovers is found in a long run."""
    slow_seconds: float = 1.0
    """Seconds from which a call of a part that others have written is logged as slow: few training steps are longer."""
    rank_seconds: float = 10.0
    """Seconds, besides those that the readings take, after which rank 0 gives up the answer of another rank."""
    fragment_seconds: float = 3.0
    """Seconds that a thread waits for a fragment of another rank: all ranks of a job are within a step."""
    close_seconds: float = 30.0
    """Seconds that `flush` and `close` wait for readings that are under way in this process."""
    close_seconds_elsewhere: float = 2.0
    """Seconds that `flush` waits for readings of other ranks, which may have died."""
    exit_seconds: float = 5.0
    """Seconds that the end of the interpreter waits for the readings of a monitor that was never closed."""
