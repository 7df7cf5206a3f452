import math

import pytest

from esdmon.errors import InputError
from esdmon.limits import Limits
from esdmon.schedule.budget import Budget
from tests.clocks import FakeClock

ADVANCE = Limits().advance_seconds


class Machine:
    """Clocks that stand still unless they are moved."""

    def __init__(self) -> None:
        self.wall = 100.0
        self.cpu = 7.0

    def works(self, seconds: float, *, cores: float = 1.0) -> None:
        self.wall += seconds
        self.cpu += seconds * cores


def budget_of(machine: Machine, share: float | None = 0.01) -> Budget:
    budget = Budget(share, clock=lambda: machine.wall, cpu_clock=lambda: machine.cpu)
    budget.start()
    return budget


def test_an_advance_is_paid_back() -> None:
    """At ADVANCE/share seconds no more than the share has been given."""
    machine = Machine()
    budget = budget_of(machine)
    assert budget.credit == ADVANCE
    machine.works(ADVANCE / 0.01)
    budget.earn(at_most=1e9)
    assert budget.credit == pytest.approx(ADVANCE)
    machine.works(100)
    budget.earn(at_most=1e9)
    assert budget.credit == pytest.approx(ADVANCE + 1)


@pytest.mark.parametrize("cores", [1.0, 2.0])
def test_what_is_used_is_charged_as_it_is_used(cores: float) -> None:
    """In wall time where the monitor uses as many cores as the run; the share that was spent is the overhead."""
    machine = Machine()
    budget = budget_of(machine)
    machine.works(399, cores=cores)  # the advance is paid back
    budget.earn(at_most=1e9)
    before = budget.credit
    with budget.spending():
        machine.works(0.25, cores=cores)
        assert before - budget.credit == pytest.approx(0.25)
        machine.works(0.75, cores=cores)
    assert before - budget.credit == pytest.approx(1)
    assert budget.overhead == pytest.approx(1 / 400)


def test_cores_that_the_run_leaves_idle_are_charged_too() -> None:
    """A reading on two cores beside a loop on one costs two seconds of that run for each of its own."""
    machine = Machine()
    budget = budget_of(machine)
    machine.works(1000, cores=1)
    with budget.measured() as cost:
        machine.works(1, cores=2)
    assert cost.seconds == pytest.approx(2, rel=0.01)


def test_a_device_that_works_while_the_cpu_waits_is_charged_by_the_wall() -> None:
    """And not by the CPU seconds, of which there are few."""
    machine = Machine()
    budget = budget_of(machine)
    machine.works(1000, cores=1)
    with budget.measured() as cost:
        machine.works(1, cores=0.1)
    assert cost.seconds == pytest.approx(1)


def test_a_long_pause_is_no_licence() -> None:
    """What is saved has a limit, and what is owed."""
    machine = Machine()
    budget = budget_of(machine)
    machine.works(1e6)
    budget.earn(at_most=3)
    assert budget.credit == pytest.approx(3)
    budget.spend(1e6)
    budget.earn(at_most=3)
    assert budget.credit == pytest.approx(-3 - ADVANCE)


def test_a_block_that_raises_is_charged() -> None:
    """What failed took its time."""
    machine = Machine()
    budget = budget_of(machine)
    before = budget.credit

    def failing() -> None:
        with budget.spending():
            machine.works(2)
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        failing()
    assert before - budget.credit == pytest.approx(2, rel=0.02)


def test_without_a_limit_everything_is_affordable() -> None:
    """And what it costs is measured all the same."""
    machine = Machine()
    budget = budget_of(machine, share=None)
    machine.works(9)
    with budget.spending():
        machine.works(1)
    budget.earn(at_most=1)
    assert budget.credit == math.inf
    assert budget.overhead == pytest.approx(0.1)


def test_before_the_run_there_is_no_overhead() -> None:
    """Not even zero."""
    assert math.isnan(Budget(0.01).overhead)


@pytest.mark.parametrize("share", [0, -0.1, 1.5, "1%", math.nan, True], ids=str)
def test_a_share_that_is_none_is_refused(share: float) -> None:
    """With what was got."""
    with pytest.raises(
        InputError, match=r"budget= must be a share of the run, above 0 and at most 1, or None for no limit"
    ):
        Budget(share)


def test_readings_on_idle_cores_cost_the_run_what_its_steps_lose() -> None:
    """Three threads may read for three seconds in each second; blocking the run counts as ever."""
    clock, rate = FakeClock(), [3.0]
    budget = Budget(0.01, clock=clock.perf_counter, cpu_clock=lambda: 0.0, advance=0.0, rate=lambda: rate[0])
    budget.start()
    clock.passes(100)
    budget.earn(at_most=1e6)
    assert budget.credit == pytest.approx(1, abs=0.01)
    assert budget.reading_credit == pytest.approx(300, rel=0.01)
    budget.read(150)
    assert budget.reading_credit == pytest.approx(150, rel=0.02)
    assert budget.overhead == 0
    budget.lose(0.4)
    assert budget.overhead == pytest.approx(0.004, rel=0.01)
    rate[0] = 0
    assert budget.reading_credit == budget.credit
    budget.read(0.2)
    assert budget.overhead == pytest.approx(0.006, rel=0.01)


def test_a_clock_stands_still_while_the_monitor_works() -> None:
    """So that its own time is not taken for one that steps have lost to threads; also inside a block."""
    clock = FakeClock()
    budget = Budget(0.01, clock=clock.perf_counter, cpu_clock=lambda: 0.0)
    before = budget.training_clock()
    clock.passes(1)
    with budget.spending():
        clock.passes(10)
        with budget.spending():
            clock.passes(10)
        assert budget.training_clock() - before == pytest.approx(1)
    clock.passes(2)
    assert budget.training_clock() - before == pytest.approx(3)


def test_each_rank_of_a_job_has_such_a_budget() -> None:
    """One reads on three idle cores, one has none; both will have earned another second."""
    clock = FakeClock()
    budget = Budget(0.01, clock=clock.perf_counter, cpu_clock=lambda: 0.0, advance=0.0)
    budget.start()
    clock.passes(100)
    budget.earn(at_most=1e6)
    assert budget.pace == 1
    assert budget.credit_at(1.0, ahead=1.0) == pytest.approx(2, rel=0.01)
    assert budget.credit_at(300.0, ahead=1.0) == pytest.approx(600, rel=0.01)
    budget.spend(5.0)
    assert budget.credit_at(300.0) == budget.credit == pytest.approx(-4, rel=0.01)


@pytest.mark.parametrize(
    ("spent", "run", "expected"),
    [(1.9, 10, False), (2.5, 10, True), (5.5, 200, False), (6.5, 200, True), (20.0, 1000, False), (23.0, 1000, True)],
)
def test_a_budget_is_exceeded_beyond_the_advance_and_twice_the_share(
    spent: float, run: float, *, expected: bool
) -> None:
    """So that readings that take half of the run are seen within seconds."""
    machine = Machine()
    budget = budget_of(machine)
    machine.works(run)
    budget.spend(spent)
    assert budget.is_exceeded is expected
    assert not budget_of(machine, share=None).is_exceeded
