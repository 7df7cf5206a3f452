"""Layers of AlexNet and InceptionV3 beside the paper's numbers, and those of VGG and ResNet.

    python -m examples.paper.pretrained
    python -m examples.paper.pretrained --weights alexnet=alexnet-owt-7be5be79.pth

Weights are looked for where torchvision and timm keep what they have downloaded; here nothing is downloaded, and a
model without weights on this machine is marked so.
"""

import argparse
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import esdmon
from esdmon.weights import open_checkpoint

_TIMM_NAMES = {"classifier.0": "pre_logits.fc1", "classifier.3": "pre_logits.fc2", "classifier.6": "head.fc"}


@dataclass(frozen=True, slots=True)
class Published:
    """A layer in Martin & Mahoney, JMLR 22 (2021) 165, §5 and its notebooks; NaN for what is not told there."""

    label: str
    alpha: float
    ks_distance: float = math.nan
    soft_rank: float = math.nan
    """λ⁺/λmax of the Marchenko-Pastur law that was fitted to a smoothed spectrum."""
    sigma: float = math.nan
    """σ of the same fit, in units of WᵀW: √N times the standard deviation of the elements that make the bulk."""


@dataclass(frozen=True, slots=True)
class Pretrained:
    """A model: its file, and the layers of interest with their shapes."""

    file: str
    """The pattern of torchvision's file name."""
    layers: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Row:
    """A layer as it is read here, beside what was published; no reading where the weights are not at hand."""

    model: str
    layer: str
    reading: esdmon.LayerReport | None
    published: Published | None


_VGG = {"classifier.0": (4096, 25088), "classifier.3": (4096, 4096), "classifier.6": (1000, 4096)}
MODELS = {
    "alexnet": Pretrained(
        "alexnet-*.pth", {"classifier.1": (4096, 9216), "classifier.4": (4096, 4096), "classifier.6": (1000, 4096)}
    ),
    "inception_v3": Pretrained("inception_v3*.pth", {"AuxLogits.fc": (1000, 768), "fc": (1000, 2048)}),
    "vgg11": Pretrained("vgg11-*.pth", _VGG),
    "vgg16": Pretrained("vgg16-*.pth", _VGG),
    "resnet18": Pretrained("resnet18-*.pth", {"layer4.1.conv2": (512, 512, 3, 3), "fc": (1000, 512)}),
    "resnet50": Pretrained("resnet50-*.pth", {"layer4.2.conv3": (2048, 512, 1, 1), "fc": (1000, 2048)}),
}
PUBLISHED = {
    ("alexnet", "classifier.1"): Published("FC1", 2.288, 0.0527, 0.0370, 0.6852),
    ("alexnet", "classifier.4"): Published("FC2", 2.245, 0.0372, 0.0123, 0.5159),
    ("alexnet", "classifier.6"): Published("FC3", 3.020, 0.0186, 0.0487, 0.9866),
    ("inception_v3", "AuxLogits.fc"): Published("L226", 5.257, sigma=1.133),
    ("inception_v3", "fc"): Published("L302", 4.484, sigma=1.024),
}


def find(model: str) -> Path | None:
    """The newest weights of a model in the caches of torchvision and of timm; None where there are none."""
    torchvision = Path(torch.hub.get_dir()) / "checkpoints"
    timm = _hugging_face_cache().glob(f"models--timm--{model}.*/snapshots/*/model.safetensors")
    found = [*torchvision.glob(MODELS[model].file), *timm]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def compare(paths: Mapping[str, Path | None], *, precision: str = "auto") -> list[Row]:
    """A row for each layer of the models, read one layer at a time.

    Raises:
        esdmon.InputError: for a file that cannot be read, or holds no layer of that name and shape.
    """
    rows = []
    for model, path in paths.items():
        for layer, shape in MODELS[model].layers.items():
            reading = None if path is None else _read(path, layer, shape, precision)
            rows.append(Row(model, layer, reading, PUBLISHED.get((model, layer))))
    return rows


def markdown(rows: Iterable[Row]) -> str:
    """A table; where something was published it stands in brackets behind what was read."""
    lines = ["| model | layer | N × M | phase | alpha | D | MP soft rank | σ | spikes |", "|" + " --- |" * 9]
    for row in rows:
        reading, published = row.reading, row.published
        name = row.layer + (f" ({published.label})" if published else "")
        if reading is None:
            values = [_cell(math.nan, getattr(published, key, math.nan)) for key in _COMPARED]
            lines.append(f"| {row.model} | {name} | | no weights on this machine | {' | '.join(values)} | |")
            continue
        ours = dict(reading.measures) | {"sigma": reading.measures["bulk_sigma"] * reading.N**0.5}
        values = [_cell(ours[measure], getattr(published, key, math.nan)) for key, measure in _COMPARED.items()]
        lines.append(
            f"| {row.model} | {name} | {reading.N} × {reading.M} | {reading.phase.value} | "
            f"{' | '.join(values)} | {ours['n_spikes']:.0f} |"
        )
    return "\n".join(lines)


_COMPARED = {"alpha": "alpha", "ks_distance": "ks_distance", "soft_rank": "mp_soft_rank", "sigma": "sigma"}


def _cell(ours: float, published: float) -> str:
    here = f"{ours:.3g}" if math.isfinite(ours) else "–"
    return f"{here} ({published:.4g})" if math.isfinite(published) else here


def _read(path: Path, layer: str, shape: tuple[int, ...], precision: str) -> esdmon.LayerReport:
    weight = _weight(path, layer, shape)
    return esdmon.analyze({f"{layer}.weight": weight}, precision=precision, layers=[layer])[layer]


def _weight(path: Path, layer: str, shape: tuple[int, ...]) -> Tensor:
    """A layer by torchvision's name for it, or timm's; timm has VGG's first two as convolutions of the whole image."""
    checkpoint = open_checkpoint(path)
    names = [f"{name}.weight" for name in (layer, _TIMM_NAMES.get(layer, layer))]
    name = next((name for name in names if name in checkpoint), None)
    if name is None:
        msg = f"{path} has no {' or '.join(dict.fromkeys(names))}: is it the weights of another model?"
        raise esdmon.InputError(msg)
    weight = checkpoint[name]
    if len(shape) == 2:
        weight = weight.flatten(1)
    if tuple(weight.shape) != shape:
        msg = f"{path}: {name} is {_sides(weight.shape)}, expected {_sides(shape)}: is it the weights of another model?"
        raise esdmon.InputError(msg)
    return weight


def _sides(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))


def _hugging_face_cache() -> Path:
    home = os.environ.get("HF_HOME", str(Path.home() / ".cache" / "huggingface"))
    return Path(os.environ.get("HF_HUB_CACHE", str(Path(home) / "hub")))


def _given(text: str) -> tuple[str, Path]:
    model, separator, path = text.partition("=")
    if not separator or model not in MODELS:
        msg = f"{text!r} is no MODEL=PATH with a model among {', '.join(MODELS)}"
        raise argparse.ArgumentTypeError(msg)
    return model, Path(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table. Returns 2 where a file cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m examples.paper.pretrained", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="MODEL")
    parser.add_argument("--weights", nargs="+", type=_given, default=[], metavar="MODEL=PATH")
    options = parser.parse_args(arguments)
    paths = {model: find(model) for model in options.models} | dict(options.weights)
    try:
        print(markdown(compare(paths)))
    except esdmon.InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
