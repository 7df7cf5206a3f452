"""Run a worker process, which finishes readings and never loads torch.

`python -m esdmon.runtime.workers.program SOCKET MEMORY [idle]`, where SOCKET and MEMORY are inherited file descriptors,
and `idle` sets the lowest priority. The worker process ends with its parent.
"""

import ctypes
import mmap
import os
import pickle
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection

import numpy as np

from esdmon.isolation import describe
from esdmon.runtime.workers.job import Order, Outcome, run
from esdmon.spectrum.lapack import eigenvalues_of_gram

_PR_SET_PDEATHSIG = 1  # of prctl(2)


def serve(connection: Connection, memory: int) -> None:
    """Run orders until the other end closes the connection. The first message is the CPU time of the start."""
    eigenvalues_of_gram([np.eye(2)], 2, "float64")  # loads scipy.linalg, so that no reading is charged for it
    connection.send(time.process_time())
    while True:
        try:
            order: Order = connection.recv()
        except EOFError:
            return
        connection.send_bytes(_packed(_do(order, memory)))


def _do(order: Order, memory: int) -> Outcome:
    shared = mmap.mmap(memory, 0, prot=mmap.PROT_READ)  # freed with the array
    return replace(run(order.job, order.array_in(shared)), cpu_seconds=time.process_time())


def _packed(outcome: Outcome) -> bytes:
    try:
        return pickle.dumps(outcome)
    except Exception as error:  # noqa: BLE001 -- an exception of a job may not be picklable
        return pickle.dumps(replace(outcome, measured=RuntimeError(describe(error))))


def _end_with_parent() -> None:
    """Make the kernel end this process together with the thread that has started it, also while it computes."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _be_idle() -> None:
    """Set the lowest priority: use only time that no other process needs."""
    with suppress(OSError, AttributeError):
        os.nice(19)
    with suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def main(arguments: Sequence[str]) -> None:
    """Serve the process that has started this one."""
    _end_with_parent()
    if len(arguments) > 2:
        _be_idle()
    serve(Connection(int(arguments[0])), int(arguments[1]))


if __name__ == "__main__":
    main(sys.argv[1:])
