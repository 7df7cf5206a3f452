"""One thread of linear algebra for each process, and no limit of time for an example of hypothesis.

Two test processes of two threads each would wait for each other; a busy machine must not fail a test.
"""

import gc
import os

import pytest
import threadpoolctl
from hypothesis import settings

from tests.idle import Idle

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for libraries that are loaded later, and for scripts that tests start
if os.environ["OMP_NUM_THREADS"] == "1":
    threadpoolctl.threadpool_limits(1)  # for numpy, which a plugin of pytest may have loaded already


@pytest.fixture(autouse=True)
def _no_idle_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test depend on how many cores of the machine are idle: a reading in a thread is charged in full."""
    monkeypatch.setattr("esdmon.options.modes.IdleCores", lambda job: Idle(lambda: 0 * job))


settings.register_profile("esdmon", deadline=None)
settings.load_profile("esdmon")


def pytest_collection_finish() -> None:
    """Leave what is imported by now out of garbage collections: hosts collect in each run, and tests that count do."""
    gc.collect()
    gc.freeze()
