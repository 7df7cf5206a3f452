"""How many threads the BLAS computes in while a model is read in this process."""

import os
import signal
import threading
from contextlib import ExitStack, suppress

import pytest
from torch import nn

import esdmon
from esdmon.spectrum.lapack import _one_thread, in_one_thread
from tests.runtime.reading.blas import NotesThreads, thread_functions
from tests.runtime.reading.test_pool import weights
from tests.runtime.workers.worker_processes import LONG


def test_the_blas_of_this_process_computes_in_one_thread_meanwhile() -> None:
    """And in as many as before afterwards, whoever comes first or leaves last, and whatever is raised."""
    set_threads, get_threads = thread_functions()
    before, notes = get_threads(), NotesThreads()
    seen = notes.seen
    set_threads(2)
    try:
        esdmon.analyze(weights(), measures=["mine"], plugins=[notes])
        assert seen == [1] * 4
        assert get_threads() == 2
        for workers in ("auto", 1):  # one matrix: no other is there for the other core
            esdmon.analyze(nn.Linear(64, 64), measures=["mine"], plugins=[notes], workers=workers)
        assert seen == [1, 1, 1, 1, 2, 1]
        del seen[:]
        barrier = threading.Barrier(2)

        def block() -> None:
            with in_one_thread():
                barrier.wait(60)
                seen.append(get_threads())

        threads = [threading.Thread(target=block) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        with pytest.raises(ZeroDivisionError, match="division"), in_one_thread():
            seen.append(1 // 0)
        assert seen == [1] * 2
        assert get_threads() == 2
    finally:
        set_threads(before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_process_that_is_forked_off_has_all_threads_of_the_blas() -> None:
    """Whether another thread's block is open, or was being opened, or its own, which it leaves there."""
    set_threads, get_threads = thread_functions()
    before = get_threads()
    set_threads(2)
    try:
        with ExitStack() as blocks:
            blocks.enter_context(in_one_thread())
            with _one_thread.lock:
                child = os.fork()
            if not child:
                status = 1
                with suppress(BaseException):
                    signal.alarm(int(LONG))  # a lock that nobody opens would hold it for ever
                    seen = [get_threads()]
                    with in_one_thread():
                        blocks.close()
                        seen.append(get_threads())
                    seen.append(get_threads())
                    status = int(seen != [2, 1, 2])
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        assert get_threads() == 2
    finally:
        set_threads(before)
