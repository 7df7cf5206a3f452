"""Faults: isolated, counted, logged once, and paused if they go on."""

import math
import signal
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import pytest

from esdmon.isolation import Fault, Faults
from esdmon.limits import Limits
from tests.loops import warnings


def fail(faults: Faults, who: str = "sink console", *, step: int = 1, text: str = "no space left") -> None:
    """Let a part fail once."""
    with faults.isolated(who, step):
        raise OSError(text)


def test_a_failure_is_kept_apart_and_written_down() -> None:
    """The exception ends with the block; the part, its last error, step and count can be read afterwards."""
    faults = Faults()
    fail(faults, step=3, text="first")
    fail(faults, step=7, text="second")
    assert list(faults) == [Fault("sink console", "OSError: second", step=7, count=2, in_a_row=2)]


def test_parts_are_listed_in_the_order_of_their_first_failure() -> None:
    """A part that fails again keeps its place."""
    faults = Faults()
    for who in ("sink b", "sink a", "sink b"):
        fail(faults, who)
    assert [(fault.who, fault.count) for fault in faults] == [("sink b", 2), ("sink a", 1)]


def test_what_does_not_fail_leaves_no_trace(caplog: pytest.LogCaptureFixture) -> None:
    """A block that ends well records no fault and logs nothing."""
    faults = Faults()
    with faults.isolated("sink console", 1):
        pass
    assert (list(faults), warnings(caplog)) == ([], [])
    assert not faults.disabled("sink console")


def test_a_part_is_paused_after_three_failures() -> None:
    """Two failures are forgiven, the third pauses it; other parts are not concerned."""
    faults = Faults()
    disabled = []
    for _ in range(Limits().failures):
        fail(faults)
        disabled.append(faults.disabled("sink console"))
    assert disabled == [False, False, True]
    assert not faults.disabled("sink other")
    assert [fault.disabled for fault in faults] == [True]


def tries(faults: Faults, due_steps: int, *, fails_until: float = math.inf, who: str = "sink console") -> list[int]:
    """The due steps at which a part was tried, of so many; it fails up to one of them."""
    tried = []
    for step in range(1, due_steps + 1):
        faults.advance()
        if faults.disabled(who):
            continue
        tried.append(step)
        with faults.isolated(who, step):
            if step <= fails_until:
                raise OSError("no space left")
    return tried


def test_pauses_grow_and_are_bounded() -> None:
    """10 due steps, 20, 40, … and 320 at most: a part that fails for ever costs little, and is not forgotten."""
    tried = tries(Faults(), 2000)
    assert tried[:3] == [1, 2, 3]
    assert [b - a for a, b in pairwise(tried[2:])] == [10, 20, 40, 80, 160, *[320] * 5]


def test_a_part_that_recovers_is_used_as_before(caplog: pytest.LogCaptureFixture) -> None:
    """An outage of three reports costs ten; pausing and recovery are one line each, and the fault stays listed."""
    faults = Faults()
    assert tries(faults, 50, fails_until=3) == [1, 2, 3, *range(13, 51)]
    assert [(fault.count, fault.in_a_row, fault.disabled) for fault in faults] == [(3, 0, False)]
    assert warnings(caplog) == [
        (
            "esdmon: sink console failed at step 1: OSError: no space left. Training continues, and this part is tried "
            "again."
        ),
        "esdmon: sink console has failed 3 times in a row and is paused for 10 due steps; see monitor.errors.",
        "esdmon: sink console works again at step 13, after 3 failures.",
    ]


def test_a_part_that_fails_for_ever_is_logged_seldom(caplog: pytest.LogCaptureFixture) -> None:
    """Its first failure, and each pause that is longer than the one before."""
    tries(Faults(), 5000)
    assert len(warnings(caplog)) == 1 + len([10, 20, 40, 80, 160, 320])


def test_pauses_begin_short_again_after_a_long_time_that_went_well() -> None:
    """Two outages that lie far apart have nothing to do with each other; two that follow each other have."""

    def second_pause(*, works_for: int) -> int:
        faults = Faults()
        tries(faults, 12, fails_until=3)
        tries(faults, works_for, fails_until=0)
        tried = tries(faults, 60)
        return tried[3] - tried[2]

    assert second_pause(works_for=5) == 20
    assert second_pause(works_for=100) == 10


def test_a_part_that_is_called_all_the_same_is_never_paused(caplog: pytest.LogCaptureFixture) -> None:
    """What the user does about an alert, say: each alert is passed on."""
    faults = Faults()
    for step in range(10):
        with faults.isolated("on_alert", step, pauses=False):
            raise OSError("no network")
    assert [(fault.count, fault.disabled) for fault in faults] == [(10, False)]
    assert len(warnings(caplog)) == 1


def test_a_failure_that_was_caught_elsewhere_counts_too() -> None:
    """A reading that has failed is a record with that status, and a fault."""
    faults = Faults()
    faults.record("reading 0", 4, RuntimeError("no memory"))
    assert list(faults) == [Fault("reading 0", "RuntimeError: no memory", step=4)]
    faults.worked("reading 0", 5)
    assert [fault.in_a_row for fault in faults] == [0]


def test_strict_raises() -> None:
    """In tests one wants the exception itself, and no bookkeeping."""
    faults = Faults(strict=True)
    with pytest.raises(OSError, match="no space left"):
        fail(faults)
    assert list(faults) == []


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_the_user_can_always_stop_the_run(stop: type[BaseException]) -> None:
    """What is no `Exception` is not ours to catch."""
    faults = Faults()
    with pytest.raises(stop, match="now"), faults.isolated("sink console", 1):
        raise stop("now")
    assert list(faults) == []


def test_an_error_that_cannot_be_printed_is_isolated_too() -> None:
    """An exception may raise in its own `__str__`; the run goes on."""

    class UnprintableError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    faults = Faults()
    with faults.isolated("measure alpha", 1):
        raise UnprintableError
    assert [fault.who for fault in faults] == ["measure alpha"]
    assert "UnprintableError" in next(iter(faults)).message


def test_a_part_that_works_again_is_forgiven() -> None:
    """Failures far apart do not add up to being shut off."""
    faults = Faults()
    for step in range(20):
        with faults.isolated("sink x", step):
            if step % 3 == 0:
                raise OSError(step)
    (fault,) = faults
    assert (fault.count, fault.disabled) == (7, False)


def test_what_fails_while_a_model_is_read_once(caplog: pytest.LogCaptureFixture) -> None:
    """There are no steps and no training, and what is paused stays so."""
    faults = Faults(during="reading")
    tries(faults, 3)
    assert faults.disabled("sink console")
    first, last = warnings(caplog)
    assert first == "esdmon: sink console failed: OSError: no space left. Reading continues without it."
    assert last == (
        "esdmon: sink console has failed 3 times in a row and is not used for the rest of this model, so its values "
        "are missing there. Correct it, and read the model again."
    )


class TimeIsUp(Exception):  # noqa: N818 -- as a user's own may be called
    """What a handler of the host raises."""


class Limit:
    """Handlers of signals in several forms."""

    def __call__(self, *_: object) -> None:
        raise TimeIsUp("after 10 s")

    def method(self, *_: object) -> None:
        raise TimeIsUp("after 10 s")


def raise_with(_text: str, *_: object) -> None:
    """A handler with an argument of its own."""
    raise TimeIsUp("after 10 s")


@pytest.fixture(autouse=True)
def _same_handler_as_before() -> Iterator[None]:
    before = signal.getsignal(signal.SIGALRM)
    yield
    signal.signal(signal.SIGALRM, before)


def raise_another() -> None:
    """Let a part raise an exception that is made of what a handler raises."""
    try:
        signal.raise_signal(signal.SIGALRM)
    except TimeIsUp as error:
        raise OSError("made of it") from error


@pytest.mark.parametrize("handler", [Limit(), Limit().method, partial(raise_with, "x"), lambda *_: raise_with("")])
@pytest.mark.parametrize("part", [partial(signal.raise_signal, signal.SIGALRM), raise_another])
def test_what_a_signal_handler_raises_reaches_the_training(handler: Any, part: Callable[[], None]) -> None:
    """A time limit of the user's that ends while a part runs is not a failure of that part."""
    signal.signal(signal.SIGALRM, handler)
    faults = Faults()
    with pytest.raises(TimeIsUp, match="after 10 s"), faults.isolated("reading a", 3):
        part()
    assert list(faults) == []


def test_the_same_exception_of_a_part_is_a_failure() -> None:
    """Where no handler has raised it, whatever handlers there are."""
    signal.signal(signal.SIGALRM, Limit())
    faults = Faults()
    with faults.isolated("sink mine", 3):
        raise TimeIsUp
    assert [fault.who for fault in faults] == ["sink mine"]
