"""Copies from an accelerator while training goes on, on a simulated device."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from esdmon.weights import Drift, Matrix, Transfers, stacks
from tests.simulated_device import SimulatedDevice


def transfers_of(device: SimulatedDevice) -> Transfers:
    return Transfers({"cpu": device})


def train(device: SimulatedDevice, weight: Tensor, steps: int) -> None:
    """Queue steps that each add 1 to the weight, a half at a time, as kernels do that work on it in blocks."""
    for _ in range(steps):
        for half in (weight[:2], weight[2:]):
            device.launch(lambda half=half: half.add_(1))  # type: ignore[misc]  # the default holds its own half


@pytest.mark.parametrize("room", [True, False])
def test_a_copy_is_of_its_step(*, room: bool) -> None:
    """Whatever is queued later, in whatever order the streams run; on the device first where there is memory."""
    device, weight = SimulatedDevice(runs_at_once=False, room=math.inf if room else 0), torch.zeros(4, 4)
    transfers = transfers_of(device)
    train(device, weight, 3)
    read = transfers.copy(weight)
    train(device, weight, 3)
    device.run()
    device.run_side()
    transfers.advance()
    assert torch.equal(read(), torch.full((4, 4), 3.0))
    assert (device.clones, device.waits) == (int(room), 0)


def test_the_simulation_can_tear_a_copy() -> None:
    """As a copy would be that was sent aside from the weight itself."""
    device, weight = SimulatedDevice(runs_at_once=False), torch.zeros(4, 4)
    train(device, weight, 3)
    sending = device.send(weight, aside=True)
    train(device, weight, 1)
    device.run(7)
    device.run_side()
    assert sorted(set(sending.host.flatten().tolist())) == [3, 4]


def test_a_thread_that_reads_does_not_call_the_device() -> None:
    """It waits until the thread that trains has seen the copy arrive."""
    device, weight = SimulatedDevice(), torch.ones(4, 4)
    transfers = transfers_of(device)
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(transfers.copy(weight))
        transfers.advance()
        assert not read.done()
        device.run_side()
        transfers.advance()
        assert torch.equal(read.result(timeout=30), weight)
    assert (device.broken, device.waits) == ([], 0)


def test_the_device_is_left_alone_while_a_graph_is_captured() -> None:
    device = SimulatedDevice()
    transfers = transfers_of(device)
    fetched = transfers.fetch(torch.ones(3))
    device.captured = True
    transfers.advance()
    transfers.advance(wait=True)
    device.captured = False
    assert (device.broken, device.waits) == ([], 0)
    assert fetched.is_there()


def test_the_thread_that_trains_waits_where_it_reads_itself() -> None:
    """No other thread could see the copy arrive. A monitor that closes waits so."""
    device = SimulatedDevice()
    transfers = transfers_of(device)
    assert torch.equal(transfers.copy(torch.ones(3))(), torch.ones(3))
    read = transfers.copy(torch.ones(3))
    transfers.advance(wait=True)
    assert device.waits == 2
    assert torch.equal(read(), torch.ones(3))
    assert device.waits == 2


def test_in_the_mode_sync_each_copy_is_waited_for() -> None:
    device = SimulatedDevice()
    transfers = transfers_of(device)
    transfers.waits = True
    fetched = transfers.fetch(torch.ones(3))
    assert fetched.is_there()


def test_a_copy_of_another_kind_of_device_is_there_at_once() -> None:
    weight = torch.ones(3)
    read = Transfers({}).copy(weight)
    weight.add_(1)
    assert torch.equal(read(), torch.ones(3))


def test_copies_are_read_by_several_threads_at_once() -> None:
    device = SimulatedDevice()
    transfers = transfers_of(device)
    read, barrier = transfers.copy(torch.ones(64, 64)), threading.Barrier(4)
    device.run_side()
    transfers.advance()

    def wait_and_read() -> Tensor:
        barrier.wait()
        return read()

    with ThreadPoolExecutor(4) as pool:
        tensors = [future.result() for future in [pool.submit(wait_and_read) for _ in range(4)]]
    assert all(tensor is tensors[0] for tensor in tensors)


def test_drift_on_a_device_is_that_of_the_look_before() -> None:
    """Nothing waits for the sample of this look; there is no number where there was none since the last reading."""
    device, weight = SimulatedDevice(runs_at_once=False), torch.ones(64, 64)
    drift = Drift(transfers_of(device))
    matrix = Matrix("w", lambda: weight, stacks.linear)
    drift.update(matrix)
    device.run()
    weight.mul_(1.5)
    assert drift.peek([matrix]) == {}
    device.run()
    weight.mul_(2)
    assert drift.peek([matrix]) == {"w": pytest.approx(0.5)}
    ratio = drift.update(matrix)
    device.run()
    assert drift.peek([matrix]) == {}
    assert ratio() == pytest.approx(2)
    assert (device.broken, device.waits) == ([], 0)
