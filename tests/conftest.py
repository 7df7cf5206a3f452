"""One thread of linear algebra for each process, and no limit of time for an example of hypothesis.

Two test processes of two threads each would wait for each other; a busy machine must not fail a test.
"""

import os

import threadpoolctl
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for libraries that are loaded later, and for scripts that tests start
if os.environ["OMP_NUM_THREADS"] == "1":
    threadpoolctl.threadpool_limits(1)  # for numpy, which a plugin of pytest may have loaded already

settings.register_profile("esdmon", deadline=None)
settings.load_profile("esdmon")
