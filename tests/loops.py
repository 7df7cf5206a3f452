"""Training loops: a network, a backward pass, a training, and what was logged."""

import logging

import pytest
import torch
from torch import nn


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 64), nn.Tanh(), nn.Linear(64, 64))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    """A few steps of noise on noise; the losses."""
    losses = []
    for _ in range(steps):
        loss = (model(torch.randn(8, 40)) - torch.randn(8, 64)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def backward(model: nn.Module) -> None:
    model.zero_grad()
    model(torch.randn(4, 40)).square().mean().backward()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
