"""Define healthy trainings of other kinds: on coordinates, by physics, with noise, without labels, linear ones."""

import math
from collections.abc import Callable

import numpy as np
import torch
from sklearn.datasets import load_sample_image
from torch import Tensor, nn
from torch.nn import functional

from tests.benchmarks.healthy import Batch, Task, classify, mlp, small_images

_LATENT = 16
_FREQUENCY = 30  # of the sines, that of V. Sitzmann et al., "Implicit neural representations …", NeurIPS 2020
_NOISES = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 200), 0)  # parts of the signal's variance, as in DDPM


class Sine(nn.Module):
    """Linear layers with sines between them, from coordinates to a brightness."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(before, width) for before in (2, width, width))
        self.last = nn.Linear(width, 1)
        for place, layer in enumerate(self.layers):
            bound = math.sqrt(6 / width) / _FREQUENCY if place else 0.5
            nn.init.uniform_(layer.get_parameter("weight"), -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Compute (batch, 1)."""
        for layer in self.layers:
            x = torch.sin(_FREQUENCY * layer(x))
        output: Tensor = self.last(x)
        return output


class Variational(nn.Module):
    """A variational autoencoder of 64 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = mlp(64, 256, 128, 2 * _LATENT), mlp(_LATENT, 128, 256, 64)


def _evidence(model: nn.Module, images: Tensor, _labels: Tensor) -> Tensor:
    """Return the negative evidence lower bound."""
    pixels = images.flatten(1)
    mean, log_variance = model.get_submodule("encoder")(pixels).chunk(2, 1)
    code = mean + torch.randn_like(mean) * (log_variance / 2).exp()
    fit = functional.binary_cross_entropy_with_logits(model.get_submodule("decoder")(code), pixels, reduction="sum")
    bound: Tensor = (fit - (1 + log_variance - mean**2 - log_variance.exp()).sum() / 2) / len(pixels)
    return bound


def _denoised(model: nn.Module, images: Tensor, _labels: Tensor) -> Tensor:
    """Return the error of the noise that a diffusion model finds, at times drawn at random."""
    pixels = 2 * images.flatten(1) - 1
    time = torch.randint(0, len(_NOISES), (len(pixels), 1))
    noise, part = torch.randn_like(pixels), _NOISES[time]
    phases = time / len(_NOISES) * torch.logspace(0, 3, 16)
    found = model(torch.cat((part.sqrt() * pixels + (1 - part).sqrt() * noise, phases.sin(), phases.cos()), 1))
    return functional.mse_loss(found, noise)


def _alike(model: nn.Module, images: Tensor, _labels: Tensor) -> Tensor:
    """Return the contrastive loss of two noisy copies of each image."""
    copies = torch.cat([images + 0.15 * torch.randn_like(images) for _ in range(2)])
    codes = functional.normalize(model(copies), dim=1)
    likeness = (codes @ codes.T / 0.2).fill_diagonal_(-math.inf)
    return functional.cross_entropy(likeness, torch.arange(len(codes)).roll(len(images)))


def _heat(model: nn.Module, points: Tensor, _none: Tensor) -> Tensor:
    """Return how far u(x, t) is from u_t = u_xx/10 with u(x, 0) = sin πx and u(0, t) = u(1, t) = 0."""
    with torch.enable_grad():
        points = points.detach().requires_grad_()
        slope_x, slope_t = torch.autograd.grad(model(points).sum(), points, create_graph=True)[0].T
        curvature = torch.autograd.grad(slope_x.sum(), points, create_graph=True)[0][:, 0]
    x, t = points.detach().T
    start = model(torch.stack((x, torch.zeros_like(t)), 1))[:, 0] - torch.sin(math.pi * x)
    ends = model(torch.stack((x.round(), t), 1))
    error: Tensor = ((slope_t - curvature / 10) ** 2).mean() + 10 * (start**2).mean() + 10 * (ends**2).mean()
    return error


def _fitted(model: nn.Module, points: Tensor, values: Tensor) -> Tensor:
    return functional.mse_loss(model(points)[:, 0], values)


def _picture() -> tuple[Batch, Batch]:
    """Return coordinates and brightness, from −1 to 1, of pixels of a photograph."""
    grey = np.asarray(load_sample_image("china.jpg"))[::6, ::6].mean(2)
    rows, columns = (torch.linspace(-1, 1, size) for size in grey.shape)
    points = torch.cartesian_prod(rows, columns)
    values = torch.from_numpy(grey).float().ravel() / 127.5 - 1
    return (points, values), (points[::7], values[::7])


def _points() -> tuple[Batch, Batch]:
    points = torch.rand(5000, 2, generator=torch.Generator().manual_seed(0))
    return (points[1000:], points[1000:]), (points[:1000], points[:1000])


def _deep_linear() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), *(nn.Linear(size, 96, bias=False) for size in (64, 96, 96)), nn.Linear(96, 10))


def _of_digits(model: nn.Module, loss: Callable[[nn.Module, Tensor, Tensor], Tensor], lr: float = 1.0) -> Task:
    return Task(model, *small_images(), loss, lr)


KINDS: dict[str, Callable[[], Task]] = {
    "sines of coordinates": lambda: Task(Sine(), *_picture(), _fitted, lr=0.3),
    "variational autoencoder": lambda: _of_digits(Variational(), _evidence),
    "diffusion": lambda: _of_digits(mlp(64 + 32, 256, 256, 256, 64), _denoised),
    "contrastive": lambda: _of_digits(mlp(64, 256, 128, 64), _alike),
    "heat equation": lambda: Task(
        nn.Sequential(nn.Linear(2, 64), *(nn.Sequential(nn.Tanh(), nn.Linear(64, size)) for size in (64, 64, 1))),
        *_points(),
        _heat,
        lr=2.0,
    ),
    "deep linear": lambda: _of_digits(_deep_linear(), classify, lr=0.5),
}
