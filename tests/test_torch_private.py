"""Each function that uses a private part of torch, against the behaviour that esdmon relies on.

Where one of these fails with a new version of torch, its docstring says what does not work any more.
"""

import sys
import threading
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from esdmon.weights import torch_private


def sgd() -> tuple[Any, torch.optim.Optimizer]:
    model: Any = nn.Linear(3, 3)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def test_step_wrapper() -> None:
    """Otherwise steps within steps count twice, and closures of LBFGS are taken for a loop without steps."""
    seen = []

    class Spy(torch.optim.SGD):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            frame = sys._getframe()
            while frame is not None:
                seen.append(frame.f_code)
                frame = frame.f_back  # type: ignore[assignment]

    Spy(nn.Linear(3, 3).parameters(), lr=0.1).step()
    assert seen.count(torch_private.step_wrapper()) == 1  # type: ignore[arg-type]


def test_has_step_hooks() -> None:
    """Otherwise `watch(model, optimizer)` refuses optimizers of torch, or fails when it registers its hook."""

    class Bare(torch.optim.Optimizer):
        def __init__(self) -> None:
            pass

    assert torch_private.has_step_hooks(sgd()[1])
    assert not torch_private.has_step_hooks(Bare())
    assert not torch_private.has_step_hooks(object())


def test_version_of() -> None:
    """Otherwise nothing is logged at close where weights were trained by another optimizer."""
    model, optimizer = sgd()
    before = torch_private.version_of(model.weight)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert torch_private.version_of(model.weight) == before + 1
    assert torch_private.version_of(None) == 0
    with torch.inference_mode():
        assert torch_private.version_of(torch.ones(3)) == 0


def test_drop_empty_gradient_hooks() -> None:
    """Otherwise a trace of esdmon stays on a weight of the user's."""
    weight = nn.Linear(3, 3).weight
    handle = weight.register_post_accumulate_grad_hook(lambda _: None)  # type: ignore[no-untyped-call]
    torch_private.drop_empty_gradient_hooks(weight)
    assert len(weight._post_accumulate_grad_hooks) == 1
    handle.remove()
    torch_private.drop_empty_gradient_hooks(weight)
    assert weight._post_accumulate_grad_hooks is None


def test_outside_dispatch_modes() -> None:
    """Otherwise what esdmon computes is counted as the host's, or fails in a mode of the host's."""
    with FlopCounterMode(display=False) as counter:
        with torch_private.outside_dispatch_modes():
            torch.ones(8, 8) @ torch.ones(8, 8)
        assert counter.get_total_flops() == 0
        torch.ones(8, 8) @ torch.ones(8, 8)
    assert counter.get_total_flops() == 2 * 8**3
    with torch_private.outside_dispatch_modes():
        assert torch.ones(2).sum() == 2


def test_is_in_backward() -> None:
    """Otherwise steps that an optimizer takes within `backward()` are read while other weights are still changed."""
    seen = []
    model, _ = sgd()
    model.weight.register_hook(lambda _: seen.append(torch_private.is_in_backward()))
    model(torch.ones(1, 3)).sum().backward()
    assert seen == [True]
    assert not torch_private.is_in_backward()


def test_use_one_thread() -> None:
    """Otherwise a reading takes all cores of the machine from the training."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    seen: dict[str, int] = {}

    def read() -> None:
        torch_private.use_one_thread()
        seen["here"] = torch.get_num_threads()

    def train() -> None:
        torch.ones(64, 64) @ torch.ones(64, 64)
        thread = threading.Thread(target=read)
        thread.start()
        thread.join()
        seen["elsewhere"] = torch.get_num_threads()

    try:
        train()
    finally:
        torch.set_num_threads(before)
    assert seen == {"here": 1, "elsewhere": 2}


def test_job_store(tmp_path: object) -> None:
    """Otherwise the ranks of a job cannot share the reading."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        torch_private.job_store("a").set("key", "1")
        assert torch_private.job_store("a").get("key") == b"1"
        assert not torch_private.job_store("b").check(["key"])
    finally:
        torch.distributed.destroy_process_group()
