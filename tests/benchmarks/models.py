"""Create models with the shapes of GPT-2 small, ResNet-50 and MiniLM-L6, and weights that look trained."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn


def gpt2() -> nn.Module:
    """Random weights in the shapes of GPT-2 small, 124 million."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model: nn.Module = GPT2LMHeadModel(GPT2Config())
    return model


def resnet50() -> nn.Module:
    """Random weights in the shapes of ResNet-50, 26 million."""
    from transformers import ResNetConfig, ResNetForImageClassification

    model: nn.Module = ResNetForImageClassification(ResNetConfig(num_labels=1000))
    return model


def minilm() -> nn.Module:
    """Random weights in the shapes of the sentence transformer all-MiniLM-L6-v2, 23 million."""
    from transformers import BertConfig, BertModel

    shapes = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    model: nn.Module = BertModel(BertConfig(**shapes))
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {"GPT-2 small": gpt2, "ResNet-50": resnet50, "MiniLM-L6": minilm}


def train(weight: Tensor, generator: torch.Generator, exponent: float = 3.0) -> None:
    """Add to each slice a matrix of an eighth of its rank, whose strengths are Pareto from the edge of noise on."""
    rows, columns = weight.shape[:2]
    n, m = max(rows, columns), min(rows, columns)
    slices, rank = math.prod(weight.shape[2:]), max(1, m // 8)
    pareto = (1 - torch.rand(slices, 1, rank, generator=generator)) ** (-1 / (exponent - 1))
    strengths = weight.std() * (n * (1 + (m / n) ** 0.5) ** 2 * pareto).sqrt()
    left = torch.randn(slices, rows, rank, generator=generator) / rows**0.5
    right = torch.randn(slices, rank, columns, generator=generator) / columns**0.5
    weight += ((left * strengths) @ right).permute(1, 2, 0).reshape(weight.shape)


def save_models(folder: Path) -> dict[str, str]:
    """Make each model once; the paths by name."""
    paths = {}
    for place, (name, make) in enumerate(MODELS.items()):
        torch.manual_seed(place)
        generator = torch.Generator().manual_seed(place)
        model = make().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim in (2, 4):
                    train(parameter, generator)
        paths[name] = str(folder / f"{place}.pt")
        torch.save(model, paths[name])
    return paths


def small() -> nn.Module:
    """What is read before anything is measured, so that libraries are loaded and threads started."""
    return nn.Sequential(nn.Linear(256, 128), nn.Conv2d(16, 32, 3))


def square(size: int, generator: torch.Generator) -> nn.Linear:
    """Make a square weight that looks trained."""
    layer = nn.Linear(size, size, bias=False)
    with torch.no_grad():
        layer.weight.normal_(std=(2 / size) ** 0.5, generator=generator)
        train(layer.weight, generator)
    return layer


def cpu_seconds(call: Callable[[], object]) -> float:
    """Return the CPU time of a call, in all threads."""
    start = time.process_time()
    call()
    return time.process_time() - start
