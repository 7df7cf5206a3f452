"""One thread of OpenMP for each process: two test processes of two threads each would wait for each other."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, here and in the scripts that tests start
