"""One thread of linear algebra for each process: two test processes of two threads each would wait for each other."""

import os

import threadpoolctl

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for libraries that are loaded later, and for scripts that tests start
if os.environ["OMP_NUM_THREADS"] == "1":
    threadpoolctl.threadpool_limits(1)  # for numpy, which a plugin of pytest may have loaded already
