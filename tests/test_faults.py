"""Faults: isolated, counted, told once, and shut off if they go on."""

import logging

import pytest

from esdmon.faults import LIMIT, Fault, Faults


def fail(faults: Faults, who: str = "sink console", *, step: int = 1, text: str = "no space left") -> None:
    """Let a part fail once."""
    with faults.isolated(who, step):
        raise OSError(text)


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What esdmon has logged as a warning."""
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


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
    """A block that ends well is no fault and logs nothing."""
    faults = Faults()
    with faults.isolated("sink console", 1):
        pass
    assert (list(faults), messages(caplog)) == ([], [])
    assert not faults.disabled("sink console")


def test_a_part_is_shut_off_after_three_failures() -> None:
    """Two failures are forgiven, the third is the last; other parts are not concerned."""
    faults = Faults()
    disabled = []
    for _ in range(LIMIT):
        fail(faults)
        disabled.append(faults.disabled("sink console"))
    assert disabled == [False, False, True]
    assert not faults.disabled("sink other")
    assert [fault.disabled for fault in faults] == [True]


def test_a_part_that_goes_on_failing_is_told_twice(caplog: pytest.LogCaptureFixture) -> None:
    """One warning at the first failure, with the error, and one when the part is shut off."""
    faults = Faults()
    for step in range(1, 6):
        fail(faults, step=step)
    first, last = messages(caplog)
    assert first == "esdmon: sink console failed at step 1 and is left out: OSError: no space left. The run goes on."
    assert last == "esdmon: sink console has failed 3 times in a row and is shut off; see monitor.errors."


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
    """A stranger's exception may raise in its own `__str__`; the run goes on all the same."""

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
