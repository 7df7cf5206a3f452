"""Compare layers of AlexNet and InceptionV3 with the published values; read layers of VGG and ResNet.

    python -m examples.paper.pretrained
    python -m examples.paper.pretrained alexnet --weights alexnet=alexnet-owt-7be5be79.pth

Weights are read from the caches of torchvision and timm. Nothing is downloaded: a model without weights on this machine
is marked in the table.
"""

import argparse
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

import esdmon
from esdmon.weights import open_checkpoint
from examples.paper import published
from examples.paper.published import Published, paper_sigma

NO_WEIGHTS = "no weights on this machine"
LEGEND = (
    "In brackets: published values. σ is in units of WᵀW. The published soft rank and σ are of a law fitted to a\n"
    "smoothed spectrum, and the published spikes were counted by hand; ours are those of `esdmon.analyze`."
)


@dataclass(frozen=True, slots=True)
class Model:
    """The files that may hold a model's weights, and the names (torchvision's) and shapes of its layers."""

    torchvision: str
    """Pattern of its file in torchvision's cache."""
    timm: str | None
    """Pattern of timm's name for it, training included; None if timm has no such model."""
    layers: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Row:
    """Our reading of a layer, and the published values."""

    model: str
    layer: str
    shape: tuple[int, ...]
    """Expected shape, from torchvision."""
    published: Published | None
    reading: esdmon.LayerReport | None = None
    problem: str = ""
    """Reason why there is no reading; empty if there is one."""


_VGG = {"classifier.0": (4096, 25088), "classifier.3": (4096, 4096), "classifier.6": (1000, 4096)}
MODELS: Mapping[str, Model] = {
    "alexnet": Model(
        "alexnet-*.pth",
        None,
        {"classifier.1": (4096, 9216), "classifier.4": (4096, 4096), "classifier.6": (1000, 4096)},
    ),
    # timm has InceptionV3 of other trainings too; these are the weights that the paper read.
    "inception_v3": Model(
        "inception_v3_google-*.pth", "inception_v3.tv_in1k", {"AuxLogits.fc": (1000, 768), "fc": (1000, 2048)}
    ),
    "vgg11": Model("vgg11-*.pth", "vgg11.*", _VGG),
    "vgg16": Model("vgg16-*.pth", "vgg16.*", _VGG),
    "resnet18": Model("resnet18-*.pth", "resnet18.*", {"layer4.1.conv2": (512, 512, 3, 3), "fc": (1000, 512)}),
    "resnet50": Model("resnet50-*.pth", "resnet50.*", {"layer4.2.conv3": (2048, 512, 1, 1), "fc": (1000, 2048)}),
}
# timm's VGG has the first two as convolutions over the whole image: 4096 × 512 × 7 × 7 is flattened to 4096 × 25088,
# torchvision's matrix, which takes the 512 × 7 × 7 features in the same order.
_TIMM_LAYERS = {"classifier.0": "pre_logits.fc1", "classifier.3": "pre_logits.fc2", "classifier.6": "head.fc"}
_PUBLISHED = {(layer.model, layer.weight): layer for layer in published.LAYERS}
_HEADER = ("model", "layer", "weight", "alpha", "D", "MP soft rank", "σ", "spikes", "phase")


def find(model: str) -> Path | None:
    """Return the newest weights in torchvision's cache, else in timm's; None if there are none."""
    for folder, pattern in _places(model):
        files = [path for path in folder.glob(pattern) if path.exists()]  # a link may point nowhere
        if files:
            return max(files, key=lambda path: path.stat().st_mtime)
    return None


def compare(weights: Mapping[str, Path], *, models: Iterable[str] = MODELS) -> list[Row]:
    """Return a row for each layer, read one layer at a time in float64; a row without a reading has the reason.

    Args:
        weights: paths of checkpoints, by model name.
        models: models to include; one that is not in `weights` gets rows without a reading.

    Raises:
        esdmon.InputError: for an unknown model.
    """
    wanted = dict.fromkeys([*models, *weights])
    for model in wanted:
        if model not in MODELS:
            msg = f"unknown model {model!r}. Available: {', '.join(MODELS)}"
            raise esdmon.InputError(msg)
    return [row for model in wanted for row in _rows(model, weights.get(model))]


def markdown(rows: Iterable[Row]) -> str:
    """Format rows as a Markdown table, with published values in brackets behind ours."""
    lines = [_HEADER, ("---",) * len(_HEADER), *map(_cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _places(model: str) -> list[tuple[Path, str]]:
    """Return (folder, pattern) of the files to look for, in order of preference."""
    known = MODELS[model]
    places = [(Path(torch.hub.get_dir()) / "checkpoints", known.torchvision)]
    if known.timm is not None:
        places.append((_hugging_face_cache(), f"models--timm--{known.timm}/snapshots/*/model.safetensors"))
    return places


def _hugging_face_cache() -> Path:
    """Return the cache folder by the rules of huggingface_hub."""
    caches = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("HF_HOME", f"{caches}/huggingface")
    return Path(os.environ.get("HF_HUB_CACHE", f"{home}/hub")).expanduser()


def _rows(model: str, path: Path | None) -> list[Row]:
    rows = [
        Row(model, layer, shape, _PUBLISHED.get((model, f"{layer}.weight")))
        for layer, shape in MODELS[model].layers.items()
    ]
    if path is None:
        return [replace(row, problem=NO_WEIGHTS) for row in rows]
    try:
        checkpoint = open_checkpoint(path)
    except esdmon.InputError as error:
        return [replace(row, problem=str(error)) for row in rows]
    return [_read(row, checkpoint, checkpoint.outlines, path) for row in rows]


def _read(row: Row, tensors: Mapping[str, Tensor], outlines: Mapping[str, Tensor], path: Path) -> Row:
    try:
        name = locate(outlines, row.layer, row.shape)
        weight = tensors[name].reshape(row.shape)
        reading = esdmon.analyze({f"{row.layer}.weight": weight}, layers=[row.layer], precision="exact")[row.layer]
    except esdmon.InputError as error:
        return replace(row, problem=f"{path}: {error}")
    if reading.status != "ok":
        return replace(row, problem=f"{path}: {name} is {reading.status}: {reading.reason}")
    return replace(row, reading=reading)


def locate(outlines: Mapping[str, Tensor], layer: str, shape: tuple[int, ...]) -> str:
    """Return the name of a layer's weight, torchvision's or timm's.

    Raises:
        esdmon.InputError: if the weight is missing or has another shape.
    """
    names = [f"{name}.weight" for name in dict.fromkeys((layer, _TIMM_LAYERS.get(layer, layer)))]
    name = next((name for name in names if name in outlines), None)
    if name is None:
        msg = f"it has no {' or '.join(names)}; are these the weights of another model?"
        raise esdmon.InputError(msg)
    got = tuple(outlines[name].shape)
    flattened = (*got[:1], math.prod(got[1:]))
    if (flattened if len(shape) == 2 else got) != shape:
        msg = f"{name} is {_sides(got)}, expected {_sides(shape)}; are these the weights of another model?"
        raise esdmon.InputError(msg)
    return name


def _sides(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))


def _cells(row: Row) -> tuple[str, ...]:
    label = f" ({row.published.label})" if row.published else ""
    ours, theirs = _ours(row.reading), _theirs(row.published)
    values = [f"{here} ({there})" if there else here for here, there in zip(ours, theirs, strict=True)]
    phase = row.reading.phase.value if row.reading else NO_WEIGHTS if row.problem == NO_WEIGHTS else "not read"
    return (row.model, row.layer + label, _sides(row.shape), *values, phase)


def _ours(reading: esdmon.LayerReport | None) -> list[str]:
    if reading is None:
        return ["–"] * 5
    values = reading.measures
    sigma = paper_sigma(values["bulk_sigma"], n=reading.N)
    numbers = [values["alpha"], values["ks_distance"], values["mp_soft_rank"], sigma, values["n_spikes"]]
    return [f"{number:.4g}" if math.isfinite(number) else "–" for number in numbers]


def _theirs(layer: Published | None) -> list[str]:
    if layer is None:
        return [""] * 5
    numbers = [layer.alpha, layer.ks_distance, layer.soft_rank, layer.sigma]
    return [*("" if number is None else f"{number:.4g}" for number in numbers), " or ".join(map(str, layer.spikes))]


def _given(text: str) -> tuple[str, Path]:
    model, _, path = text.partition("=")
    if not path or model not in MODELS:
        msg = f"Invalid MODEL=PATH {text!r}. Available models: {', '.join(MODELS)}"
        raise argparse.ArgumentTypeError(msg)
    return model, Path(path).expanduser()


def _named(text: str) -> str:
    if text not in MODELS:
        msg = f"unknown model {text!r}. Available: {', '.join(MODELS)}"
        raise argparse.ArgumentTypeError(msg)
    return text


def _compared(model: str, path: Path | None) -> list[Row]:
    """Return a model's rows; print the file that is read and each problem to stderr."""
    if path is None:
        places = " and ".join(f"{pattern} in {folder}" for folder, pattern in _places(model))
        print(f"{model}: {NO_WEIGHTS}: looked for {places}; or give --weights {model}=PATH", file=sys.stderr)
        return compare({}, models=[model])
    print(f"{model}: reading {path}", file=sys.stderr)
    rows = compare({model: path}, models=[model])
    for problem in dict.fromkeys(row.problem for row in rows if row.problem):
        print(f"{model}: {problem}", file=sys.stderr)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return 2 if nothing could be read from a model's file."""
    parser = argparse.ArgumentParser(prog="python -m examples.paper.pretrained", description=main.__doc__)
    parser.add_argument("models", nargs="*", type=_named, metavar="MODEL", help=f"default: {', '.join(MODELS)}")
    parser.add_argument(
        "--weights",
        nargs="+",
        action="extend",
        type=_given,
        default=[],
        metavar="MODEL=PATH",
        help="path of a model's checkpoint",
    )
    options = parser.parse_args(arguments)
    given = dict(options.weights)
    wanted = dict.fromkeys([*(options.models or MODELS), *given])
    paths = {model: given.get(model) or find(model) for model in wanted}
    rows = [row for model, path in paths.items() for row in _compared(model, path)]
    print(f"{markdown(rows)}\n\n{LEGEND}")
    read = {row.model for row in rows if row.reading is not None}
    return 2 if any(path is not None and model not in read for model, path in paths.items()) else 0


if __name__ == "__main__":
    sys.exit(main())
