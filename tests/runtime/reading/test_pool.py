"""A model that is read once, in this process or by several others."""

import math
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import esdmon
from esdmon.cli import main
from esdmon.errors import InputError
from esdmon.options import choose_measures
from esdmon.plugins import Plugins
from esdmon.runtime.reading import pool as pools
from esdmon.runtime.reading.options import ReadingOptions
from esdmon.runtime.reading.pool import Pool
from esdmon.runtime.reading.reader import Reader
from esdmon.runtime.workers import worker as worker_module
from esdmon.spectrum import Measure, Spectrum
from esdmon.weights import Transfers, solve_lapack
from tests.runtime.reading.blas import NotesThreads, thread_functions
from tests.runtime.workers.worker_processes import LONG, Pids
from tests.simulated_device import SimulatedDevice

NAMES = [f"layer{place}" for place in range(6)]


def weights(seed: int = 0) -> dict[str, Tensor]:
    """Matrices, a convolution, a weight of 16 bits, a zero one and one that is not finite."""
    draw = torch.Generator().manual_seed(seed)
    found = {f"{name}.weight": torch.randn(80 + 8 * place, 64, generator=draw) for place, name in enumerate(NAMES[:3])}
    found["layer3.weight"] = torch.randn(40, 24, 3, 3, generator=draw).bfloat16()
    found["layer4.weight"] = torch.zeros(60, 50)
    found["layer5.weight"] = torch.full((60, 50), math.nan)
    return found


def reader_of(model: Any, pool: Pool, *, measures: Any = "default", plugins: Any = (), **options: Any) -> Reader:
    plugins = Plugins(plugins)
    reading = ReadingOptions(choose_measures(measures, plugins.measures), solver=solve_lapack, processes=pool.processes)
    return Reader(model, plugins, reading, **options)


def test_processes_read_what_this_one_reads(pids: Pids, tmp_path: Path) -> None:
    """To the last bit, in the order of the model; to rounding, what needs eigenvectors."""
    save_file(weights(), tmp_path / "model.safetensors")
    before = {name: weight * 0.9 if weight.any() else weight for name, weight in weights(1).items()}

    def read(workers: int, **options: Any) -> esdmon.Report:
        return esdmon.analyze(tmp_path / "model.safetensors", workers=workers, **options)

    assert [layer.name for layer in read(2)] == NAMES
    for options in ({}, {"reference": before}):
        assert str(read(2, **options).to_records()) == str(read(1, **options).to_records())
    for here, beside in zip(read(1, measures="all"), read(2, measures="all"), strict=True):
        assert dict(beside.measures) == pytest.approx(dict(here.measures), rel=1e-9, nan_ok=True)
        assert (beside.phase, beside.status) == (here.phase, here.status)
    assert len(pids.started) == 8


def test_processes_begin_with_the_costliest(pids: Pids, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a large one at the end of the model is computed alone; equal ones are begun in the model's order."""
    begin, begun = Reader.begin, []

    def recorded(reader: Reader, name: str, *args: Any, **options: Any) -> Any:
        begun.append(name)
        return begin(reader, name, *args, **options)

    monkeypatch.setattr(Reader, "begin", recorded)
    model = {f"{place}.weight": torch.randn(rows, 64) for place, rows in enumerate((64, 96, 64, 96, 256))}
    assert [layer.name for layer in esdmon.analyze(model, workers=2)] == ["0", "1", "2", "3", "4"]
    assert begun == ["4", "1", "3", "0", "2"]
    assert len(pids.started) == 2


def test_a_measure_of_a_plugin_is_computed_here(pids: Pids) -> None:
    class Plugin:
        @esdmon.hookimpl
        def esdmon_register_measures(self) -> list[Measure]:
            return [Measure("mine", self._mine)]

        def _mine(self, spectrum: Spectrum) -> float:
            return float(os.getpid() + spectrum.m)

    report = esdmon.analyze(weights(), measures=["mine"], plugins=[Plugin()], workers=2)
    assert report["layer0"].measures["mine"] == os.getpid() + 64
    assert len(pids.started) == 2


def test_a_scan_reads_in_processes(pids: Pids, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both checkpoints of a comparison, by the same ones."""
    for seed in (0, 1):
        torch.save(weights(seed), tmp_path / f"step-{seed}.pt")
    printed = []
    for workers in ("1", "2"):
        other = str(tmp_path / "step-0.pt")
        assert main(["scan", str(tmp_path / "step-1.pt"), "--compare", other, "--json", "--workers", workers]) == 1
        printed.append(re.sub(r'"seconds": [\d.e-]+', "", capsys.readouterr().out))
    assert printed[0] == printed[1]
    assert len(pids.started) == 2


def test_what_a_killed_process_was_reading_has_failed(pids: Pids, caplog: pytest.LogCaptureFixture) -> None:
    """The others are read: after two such losses here."""
    model = {f"{place}.weight": torch.randn(64, 64) for place in range(8)}
    with closing(Pool(2)) as pool:
        reader = reader_of(model, pool)
        reading = pool.read(reader, [matrix.name for matrix in reader.matrices], 0)
        first = next(reading)
        until = time.monotonic() + LONG
        while len(pool.processes._workers) < 2 and time.monotonic() < until:  # a start that fails is another case
            time.sleep(0.01)
        for pid in pids.started:
            os.kill(pid, signal.SIGKILL)
        layers = [first, *reading]
    assert len(layers) == 8
    failed = [layer.reason for layer in layers if layer.status == "failed"]
    assert 1 <= len(failed) <= 2
    assert all("was ended by signal 9, perhaps by the kernel for want of memory" in reason for reason in failed)
    assert "From now on threads of this process read in their place" in caplog.text or len(failed) == 1


def test_a_reading_that_is_left_ends_its_processes(pids: Pids) -> None:
    """As Ctrl-C does; the fixture looks whether they have ended."""
    model = {f"{place}.weight": torch.randn(64, 64) for place in range(8)}
    with closing(Pool(2)) as pool:
        reader = reader_of(model, pool)
        next(pool.read(reader, [matrix.name for matrix in reader.matrices], 0))
    assert len(pids.started) == 2


def test_copies_from_a_device_are_waited_for_by_the_thread_that_reads(pids: Pids) -> None:
    """Threads that wait for worker processes must not call the device."""
    layers: list[esdmon.records.LayerReport] = []
    broken: list[str] = []

    def read() -> None:
        device = SimulatedDevice()
        with closing(Pool(2)) as pool:
            reader = reader_of(weights(), pool, transfers=Transfers({"cpu": device}))
            layers.extend(pool.read(reader, NAMES, 0))
        broken.extend(device.broken)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(LONG)
    assert {layer.name: layer.status for layer in layers} == {
        **dict.fromkeys(NAMES[:4], "ok"),
        "layer4": "degenerate",
        "layer5": "nonfinite",
    }
    assert broken == []
    assert len(pids.started) == 2


class Iterated(list[str]):
    """Names, and how often somebody has gone through all of them."""

    times = 0

    def __iter__(self) -> Iterator[str]:
        self.times += 1
        return super().__iter__()


def count(
    monkeypatch: pytest.MonkeyPatch,
    *,
    cores: int = 16,
    memory: float = math.inf,
    workers: str | int = "auto",
    measures: Any = "default",
) -> int:
    """Return how many processes would read four matrices that take 4 seconds each, of 16.8 million elements each."""
    monkeypatch.setattr(pools, "cores", lambda: cores)
    monkeypatch.setattr(pools, "available_bytes", lambda: memory)
    model = {f"{place}.weight": torch.empty(4096, 4096, device="meta") for place in range(4)}
    with closing(Pool(workers)) as pool:
        reader = reader_of(model, pool, measures=measures)
        names = Iterated(matrix.name for matrix in reader.matrices)
        found = pool._count_for(reader, names)
    assert names.times <= 1  # in a model of 20 000 matrices, more took seconds
    return found


def test_there_are_processes_for_the_work_the_cores_and_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert count(monkeypatch) == 4
    assert count(monkeypatch, cores=3) == 3
    assert count(monkeypatch, memory=1e8) == 1
    assert count(monkeypatch, workers=2) == 2
    assert count(monkeypatch, workers=9) == 4
    monkeypatch.setenv("OMP_NUM_THREADS", "2,1")
    assert count(monkeypatch) == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert count(monkeypatch) == 4
    monkeypatch.delattr(os, "memfd_create")
    assert count(monkeypatch, workers=2) == 1


def test_the_memory_of_a_process_depends_on_what_it_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what is available half is taken: for each 70 MB, and 32 or 96 bytes for each element of the largest weight."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for measures, each in (("default", 32), (["alpha"], 32), ("all", 96), (["alpha", "intruders"], 96)):
        three = 2 * 3 * (70e6 + each * 4096**2)
        assert count(monkeypatch, memory=three + 1, measures=measures) == 3
        assert count(monkeypatch, memory=three - 1e6, measures=measures) == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # each rank of the host has its share
    assert count(monkeypatch, memory=2 * three + 1, measures="all") == 3
    assert count(monkeypatch, memory=2 * three - 1e6, measures="all") == 2


@pytest.mark.parametrize(("memory", "started"), [((math.inf, 0.0), 2), ((0.0, math.inf), 0)])
def test_the_number_of_processes_is_that_of_the_first_reading(
    pids: Pids, monkeypatch: pytest.MonkeyPatch, memory: tuple[float, ...], started: int
) -> None:
    """Whatever the next checkpoint of a comparison would allow."""
    monkeypatch.setattr(pools, "_cores", lambda: 2)
    monkeypatch.setattr(pools, "_WORTH", 1e-9)
    with closing(Pool("auto")) as pool:
        reader = reader_of(weights(), pool)
        assert list(pool.read(reader, [], 0)) == []  # of what another rank reads
        for available, names in zip(memory, (NAMES, NAMES[:3]), strict=True):
            monkeypatch.setattr(pools, "available_bytes", lambda available=available: available)
            assert len(list(pool.read(reader, names, 0))) == len(names)
            assert pool.processes.are_usable == bool(started)
        assert (pool._threads is not None) == bool(started)
    assert len(pids.started) == started


def test_without_processes_this_one_reads_a_matrix_at_a_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In one thread of the BLAS, also what is read later: else each thread held what a process would have."""

    def refused(*_args: object, **_options: object) -> None:
        raise OSError("no more processes")

    monkeypatch.setattr(worker_module, "_started", refused)
    set_threads, get_threads = thread_functions()
    before, met = get_threads(), []
    both = threading.Barrier(2, action=lambda: met.append("two at once"))

    def meet() -> None:
        with suppress(threading.BrokenBarrierError):
            both.wait(0.1)
        both.reset()

    notes = NotesThreads(meet)
    set_threads(2)
    try:
        with closing(Pool(3)) as pool:
            reader = reader_of(weights(), pool, measures=["mine"], plugins=[notes])
            for _ in range(2):
                layers = list(pool.read(reader, NAMES, 0))
                assert {layer.status for layer in layers} == {"ok", "degenerate", "nonfinite"}
        assert get_threads() == 2
    finally:
        set_threads(before)
    assert notes.seen == [1] * 8
    assert met == []
    assert len(caplog.messages) == 1


def test_a_small_model_is_read_here(pids: Pids) -> None:
    """A process takes longer to start."""
    assert len(esdmon.analyze(weights()).layers) == 6
    assert pids.started == []


@pytest.mark.parametrize("workers", [0, -1, 1.5, "all", None, True])
def test_workers_that_cannot_be_used_are_refused(workers: Any) -> None:
    with pytest.raises(InputError, match="workers= must be 'auto', or a number of worker processes, 1 or more; got"):
        esdmon.analyze(nn.Linear(64, 64), workers=workers)
