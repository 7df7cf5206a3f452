"""A loop that raises, is interrupted, or closes twice: its own exception passes, and readings are not lost."""

import signal

import pytest

from esdmon.spectrum import Spectrum
from tests.runtime.faults.disturbed import Plugin, Run, both_modes


@both_modes
@pytest.mark.parametrize("error", [RuntimeError("the user's own"), KeyboardInterrupt("the user's own")], ids=repr)
def test_an_exception_in_the_loop(mode: str, error: BaseException, undisturbed: list[float]) -> None:
    """It passes; what was read is written, what was opened is closed."""
    run = Run(mode=mode)

    def fail(step: int) -> None:
        if step == 7:
            raise error

    def loop() -> None:
        with run.monitor:
            run.train(before=fail)

    with pytest.raises(type(error), match="the user's own"):
        loop()
    assert run.losses == undisturbed[:6]
    assert run.steps_read[0] == 2
    assert run.steps_read[-1] == 6
    assert not run.optimizer._optimizer_step_post_hooks


def test_an_interrupt_in_the_midst_of_a_reading(undisturbed: list[float]) -> None:
    """Ctrl-C is the user's: it stops the loop there, and a loop that goes on is watched on."""
    interrupted: list[bool] = []

    def interrupt(_spectrum: Spectrum) -> float:
        if not interrupted:
            interrupted.append(True)
            signal.raise_signal(signal.SIGINT)
        return 1.0

    run = Run(mode="sync", plugins=[Plugin(interrupt)])

    # A process that a shell started in the background ignores the signal, and Python leaves that so.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt, match=r"^$"):  # as Python raises it for a signal
            run.train()
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(run.losses) == 1
    assert undisturbed[:1] == run.losses
    run.optimizer.step()
    run.optimizer.step()
    run.monitor.close()
    assert run.steps_read[-1] == 4


@both_modes
def test_closing_twice(mode: str, undisturbed: list[float]) -> None:
    """Once is enough, and a second time does nothing; nor does a step after it."""
    run = Run(mode=mode)
    run.train()
    run.monitor.close()
    read = run.steps_read
    run.monitor.close()
    run.monitor.step()
    run.monitor.flush()
    assert run.losses == undisturbed
    assert run.steps_read == read
