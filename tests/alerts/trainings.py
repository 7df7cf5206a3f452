"""Small real trainings: digits, with several optimizers and adapters, and text."""

from __future__ import annotations

from collections.abc import Callable
from pydoc_data.topics import topics
from typing import Any

import peft
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from esdmon.cli.digits import batches, digits

_TRAINED_ON = 1400  # of the 1797 digits


class Training:
    """What a fault may meddle with."""

    model: nn.ModuleDict
    optimizer: torch.optim.Optimizer
    extra: Callable[[], Tensor] | None = None
    """A term of the loss that ought not to be there."""
    after: Callable[[], object] | None = None
    """Done after each step."""

    def loss(self) -> Tensor:
        raise NotImplementedError

    def weight(self, name: str) -> Tensor:
        return self.model.get_parameter(f"{name}.weight")

    def step(self) -> None:
        loss = self.loss()
        if self.extra is not None:
            loss = loss + self.extra()
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.optimizer.step()
        if self.after is not None:
            self.after()


class Digits(Training):
    """Three layers that classify digits."""

    def __init__(self, *, lr: float = 0.02, momentum: float = 0.9, batch_size: int = 32) -> None:
        torch.manual_seed(0)
        self.model = nn.ModuleDict({"fc1": nn.Linear(256, 192), "fc2": nn.Linear(192, 128), "fc3": nn.Linear(128, 10)})
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=lr, momentum=momentum)
        images, labels = digits()
        self.images, self.labels = images[:_TRAINED_ON].flatten(1), labels[:_TRAINED_ON]
        self.held_back = images[_TRAINED_ON:].flatten(1), labels[_TRAINED_ON:]
        self.cut_off = ""
        """A layer whose output is detached."""
        self.batches = batches(len(self.images), batch_size, seed=0)
        self.initial = self.weight("fc1").detach().clone()

    def loss(self) -> Tensor:
        index = next(self.batches)
        return functional.cross_entropy(self.forward(self.images[index]), self.labels[index])

    def forward(self, x: Tensor) -> Tensor:
        for name, layer in self.model.items():
            x = layer(x) if name == "fc3" else functional.relu(layer(x))
            x = x.detach() if name == self.cut_off else x
        return x

    def accuracy(self) -> float:
        """On digits that are not trained on."""
        images, labels = self.held_back
        with torch.no_grad():
            return float((self.forward(images).argmax(1) == labels).float().mean())


class InGroups(Digits):
    """The same layers, with the last weight in a group of its own."""

    def __init__(self) -> None:
        super().__init__()
        last = self.weight("fc3")
        others = [parameter for parameter in self.model.parameters() if parameter is not last]
        groups: list[dict[str, Any]] = [{"params": others}, {"params": [last]}]
        self.optimizer = torch.optim.SGD(groups, lr=0.02, momentum=0.9)


class Decayed(Digits):
    """The same layers, with AdamW and its weight decay."""

    def __init__(self) -> None:
        super().__init__()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, weight_decay=0.1)


class Computed(Digits):
    """The same layers, but the first weight is the output of a module, of which single steps are not sampled."""

    def __init__(self) -> None:
        super().__init__()
        parametrize.register_parametrization(self.model["fc1"], "weight", nn.Identity())

    def weight(self, name: str) -> Tensor:
        if name == "fc1" and hasattr(self.model["fc1"], "parametrizations"):
            return self.model.get_parameter("fc1.parametrizations.weight.original")
        return super().weight(name)


class Adapted(Digits):
    """The same layers, trained, and then fine-tuned by adapters on digits that are shifted by a pixel."""

    def __init__(self) -> None:
        super().__init__()
        for _ in range(200):
            self.step()
        self.images = self.images.roll(1, 1)
        adapters = peft.LoraConfig(r=8, lora_alpha=8, target_modules=["fc1", "fc2"])
        peft.inject_adapter_in_model(adapters, self.model)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad = "lora" in name
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.SGD(trained, lr=0.02, momentum=0.9)


class Text(Training):
    """The next character by the eight before it."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        text = "".join(topics.values())[:100_000]
        known = {character: number for number, character in enumerate(sorted(set(text)))}
        self.windows = torch.tensor([known[character] for character in text]).unfold(0, 9, 1)
        self.model = nn.ModuleDict(
            {
                "embed": nn.Embedding(len(known), 80),
                "hidden": nn.Linear(8 * 80, 128),
                "head": nn.Linear(128, len(known)),
            }
        )
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.3)
        self.batches = batches(len(self.windows), 32, seed=0)

    def loss(self) -> Tensor:
        window = self.windows[next(self.batches)]
        x = self.model["embed"](window[:, :8]).flatten(1)
        return functional.cross_entropy(self.model["head"](functional.relu(self.model["hidden"](x))), window[:, 8])
