"""Make models to test with: weights of many kinds and shapes, and small networks that train."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from esdmon.records import Report
from esdmon.runtime.monitor import Monitor
from esdmon.selftest.harness import Machine
from esdmon.sinks import MemorySink
from esdmon.watching import watch

Fill = Callable[[int, int, torch.Generator], Tensor]


def noise(n: int, m: int, random: torch.Generator) -> Tensor:
    """Return pure noise."""
    return torch.randn(n, m, generator=random).mul(1 / math.sqrt(n))


def spiked(n: int, m: int, random: torch.Generator) -> Tensor:
    """Return noise plus three directions with larger singular values."""
    left, right = torch.randn(n, 3, generator=random) * n**-0.5, torch.randn(m, 3, generator=random) * m**-0.5
    spikes: Tensor = left * torch.tensor([4.0, 6.0, 9.0]) @ right.mT
    return noise(n, m, random) + spikes


def heavy_elements(n: int, m: int, random: torch.Generator) -> Tensor:
    """Return independent elements with a heavy tail."""
    sizes = torch.rand(n, m, generator=random).add(0.001).pow(-0.7)
    return noise(n, m, random).sign().mul(0.01).mul(sizes)


def power_law(n: int, m: int, random: torch.Generator) -> Tensor:
    """Return a matrix whose singular values follow a power law, as in a well-trained layer."""
    left = torch.linalg.qr(torch.randn(n, min(n, m), generator=random))[0]
    right = torch.linalg.qr(torch.randn(m, min(n, m), generator=random))[0]
    weight: Tensor = left * (1 + torch.arange(min(n, m))) ** -0.6 @ right.mT
    return weight


def deficient(n: int, m: int, random: torch.Generator) -> Tensor:
    """Return a matrix of a third of the full rank."""
    k = min(n, m) // 3
    return torch.randn(n, k, generator=random) @ torch.randn(k, m, generator=random) / n


def with_dead_rows(n: int, m: int, random: torch.Generator) -> Tensor:
    """Return noise with rows and columns of zeros."""
    weight = noise(n, m, random)
    weight[::7] = 0
    weight[:, ::5] = 0
    return weight


_LINEAR: Mapping[str, tuple[int, int, Fill]] = {
    "noise": (512, 384, noise),
    "square": (256, 256, noise),
    "spiked": (512, 256, spiked),
    "heavy": (512, 256, heavy_elements),
    "power_law": (384, 256, power_law),
    "deficient": (300, 192, deficient),
    "dead_rows": (400, 250, with_dead_rows),
    "tall": (4096, 128, spiked),
    "wide": (96, 2048, power_law),
    "small": (48, 40, noise),
    "few": (33, 32, spiked),
    "prime": (521, 257, power_law),
}
_LARGE: Mapping[str, tuple[int, int, Fill]] = {  # cuSOLVER uses other solvers for this many eigenvalues
    "at_512": (1024, 512, power_law),
    "above_512": (1024, 513, power_law),
    "large": (2048, 1024, spiked),
    "largest": (2048, 2048, power_law),
}
_CONV: Mapping[str, tuple[Callable[[], nn.Module], Fill]] = {
    "conv3x3": (lambda: nn.Conv2d(96, 128, 3), spiked),
    "conv_grouped": (lambda: nn.Conv2d(128, 128, 3, groups=2), noise),
    "conv1x1": (lambda: nn.Conv2d(128, 192, 1), power_law),
    "conv_transposed": (lambda: nn.ConvTranspose2d(64, 96, 3), noise),
}
TORN = 1e-5
"""Relative error of lambda_max above which a copy is of another step: 20 times the error of float32."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def zoo(dtype: torch.dtype, *, large: bool) -> nn.ModuleDict:
    """Return a model with a layer of each kind, on the CPU, with the same weights at each call.

    Args:
        dtype: type of the weights.
        large: include layers that take seconds on a CPU.
    """
    random = torch.Generator("cpu").manual_seed(7)
    layers = nn.ModuleDict()
    for name, (n, m, fill) in (dict(_LINEAR) | (dict(_LARGE) if large else {})).items():
        layers[name] = _filled(nn.Linear(m, n, bias=False), fill, random)
    for name, (make, fill) in _CONV.items():
        layers[name] = _filled(make(), fill, random)
    return layers.to(dtype)


def _filled(layer: nn.Module, fill: Fill, random: torch.Generator) -> nn.Module:
    weight = layer.get_parameter("weight")
    with torch.no_grad():
        weight.copy_(fill(weight.shape[0], weight[0].numel(), random).reshape(weight.shape))
    return layer


def small_network() -> nn.Sequential:
    """Return a convolution and three linear layers with dropout, for images of 3 × 8 × 8."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(2048, 256),
        nn.ReLU(),
        nn.Linear(256, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def mlp(width: int, depth: int) -> nn.Sequential:
    """Return a stack of linear layers of one width."""
    return nn.Sequential(*(each for _ in range(depth) for each in (nn.Linear(width, width), nn.ReLU())))


@final
class Training:
    """A network that trains on random numbers from a fixed seed.

    Args:
        machine: the device.
        make: returns a network for `inputs`; called after the seed is set.
        inputs: the shape of a batch.
        options: options of `esdmon.watch`; None for a training without a monitor.
    """

    def __init__(
        self,
        machine: Machine,
        make: Callable[[], nn.Module] = small_network,
        inputs: tuple[int, ...] = (64, 3, 8, 8),
        options: Mapping[str, Any] | None = None,
    ) -> None:
        torch.manual_seed(11)
        self.model = make().to(machine.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        self.inputs = torch.randn(inputs, device="cpu", generator=torch.Generator("cpu").manual_seed(3)).to(
            machine.device
        )
        self.losses: list[Tensor] = []
        self.sink = MemorySink()
        self.monitor: Monitor | None = None
        if options is not None:
            self.monitor = watch(self.model, self.optimizer, **({"sinks": [self.sink]} | dict(options)))

    def step(self) -> None:
        """Take a training step; the loss stays on the device, so that nothing waits for it."""
        self.backward()
        self.optimizer.step()

    def backward(self) -> None:
        """Compute the gradients of a step."""
        self.optimizer.zero_grad()
        out = self.model(self.inputs)
        loss = functional.mse_loss(out.float(), torch.zeros_like(out, dtype=torch.float32))
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.losses.append(loss.detach())

    def flush(self) -> None:
        """Wait for the readings in flight."""
        if self.monitor is not None:
            self.monitor.flush()

    def close(self) -> list[str]:
        """Close the monitor, and return its internal failures and the layers that could not be read."""
        if self.monitor is None:
            return []
        self.monitor.close()
        return faults_of(self.monitor) + unread(self.sink.reports)

    @property
    def readings(self) -> int:
        """Return how many matrices were read, over all reports."""
        return sum(len(report.new) for report in self.sink.reports)

    def equals(self, other: "Training") -> bool:
        """Return whether losses and weights equal those of another training, bit by bit."""
        weights = zip(self.model.parameters(), other.model.parameters(), strict=True)
        return torch.equal(torch.stack(self.losses), torch.stack(other.losses)) and all(
            torch.equal(mine, theirs) for mine, theirs in weights
        )


def faults_of(monitor: Monitor) -> list[str]:
    """Return the internal failures of a monitor."""
    return [f"{fault.who}: {fault.message}" for fault in monitor.errors]


def unread(reports: list[Report]) -> list[str]:
    """Return the layers whose reading failed, each with the reason."""
    return sorted(
        {
            f"{each.name}: {each.status}, {each.reason}"
            for report in reports
            for each in report.new
            if each.status != "ok"
        }
    )


def lambda_max(weight: Tensor) -> float:
    """Return the largest eigenvalue of WᵀW/N in float64, computed independently of esdmon's code."""
    wide = weight.double()
    return float(torch.linalg.eigvalsh((wide.mT @ wide).cpu())[-1]) / max(weight.shape)


def against_clones(
    reports: Iterable[Report], clones: Mapping[int, Tensor], *, name: str = ""
) -> tuple[list[str], float, int]:
    """Return the readings whose lambda_max is not that of the clone of their step, the largest error, and their number.

    Args:
        reports: reports of a model.
        clones: clones of one weight, by step.
        name: of this weight; may be empty if the model has no other.
    """
    wrong, errors = [], [0.0]
    for each in (each for report in reports for each in report.new if name in ("", each.name)):
        errors.append(abs(each.measures.get("lambda_max", math.nan) / lambda_max(clones[each.step]) - 1))
        if not errors[-1] <= TORN:
            wrong.append(f"step {each.step}: {each.status}, lambda_max off by {errors[-1]:.1e}")
    return wrong, max(errors), len(errors) - 1
