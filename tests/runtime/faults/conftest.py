"""The losses that a disturbed training must have."""

import pytest

from tests.runtime.faults.disturbed import Run


@pytest.fixture(scope="module")
def undisturbed() -> list[float]:
    """The losses of the same training that nobody watches."""
    run = Run()
    run.train()
    return run.losses
