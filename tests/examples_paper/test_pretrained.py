"""Pretrained layers beside the published values, on random weights of exactly their shapes."""

import math
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from esdmon import InputError
from esdmon.records.serialization import to_plain
from examples.paper import pretrained, published
from examples.paper.pretrained import MODELS, NO_WEIGHTS, compare, find, locate, main, markdown
from tests import architectures

DEVIATION = 0.02
TIMM_VGG = {
    "pre_logits.fc1.weight": (4096, 512, 7, 7),
    "pre_logits.fc2.weight": (4096, 4096, 1, 1),
    "head.fc.weight": (1000, 4096),
}


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches of torchvision and timm."""
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def noise(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {f"{layer}.weight": DEVIATION * torch.randn(shape, generator=generator) for layer, shape in shapes.items()}


def meta(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def placed(path: Path, *, age: float = 0) -> Path:
    """Write an empty file that is `age` seconds old."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.utime(path, (1e9 - age, 1e9 - age))
    return path


def snapshot(hub: Path, name: str, *, revision: str = "0", age: float = 0) -> Path:
    return placed(hub / f"models--timm--{name}/snapshots/{revision}/model.safetensors", age=age)


def cells(table: str) -> list[list[str]]:
    """Return the rows of a table."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_shapes_are_those_of_the_architectures() -> None:
    """As torchvision builds them."""
    with torch.device("meta"):
        alexnet, vgg, inception = architectures.alexnet(), architectures.vgg11(), architectures.inception_v3()
    for model, names in ((alexnet, ["alexnet"]), (vgg, ["vgg11", "vgg16"]), (inception, ["inception_v3"])):
        linear = [tuple(m.weight.shape) for m in model.modules() if isinstance(m, torch.nn.Linear)]
        for name in names:
            assert list(MODELS[name].layers.values()) == linear
    assert MODELS["resnet18"].layers == {"layer4.1.conv2": (512, 512, 3, 3), "fc": (1000, 512)}
    assert MODELS["resnet50"].layers == {"layer4.2.conv3": (2048, 512, 1, 1), "fc": (1000, 2048)}


@pytest.mark.parametrize("model", MODELS)
def test_layers_are_found_by_name_and_shape(model: str) -> None:
    """Torchvision's names in every model."""
    layers = MODELS[model].layers
    outlines = meta({f"{layer}.weight": shape for layer, shape in layers.items()})
    assert [locate(outlines, layer, shape) for layer, shape in layers.items()] == list(outlines)


def test_timms_vgg_has_the_same_matrices() -> None:
    """Its convolutions of 7 × 7 and 1 × 1, flattened, are torchvision's linear layers."""
    layers = MODELS["vgg16"].layers
    assert [locate(meta(TIMM_VGG), layer, shape) for layer, shape in layers.items()] == list(TIMM_VGG)
    assert [(shape[0], math.prod(shape[1:])) for shape in TIMM_VGG.values()] == list(layers.values())


def test_timms_convolution_is_read_as_a_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flattened as torchvision has it, and not one kernel position after another."""
    small = pretrained.Model("vgg11-*.pth", None, {"classifier.0": (64, 12 * 49)})
    monkeypatch.setattr(pretrained, "MODELS", {"vgg11": small})
    linear = noise(small.layers)["classifier.0.weight"]
    readings = []
    for name, weight in (("classifier.0", linear), ("pre_logits.fc1", linear.reshape(64, 12, 7, 7))):
        save_file({f"{name}.weight": weight}, tmp_path / "m.safetensors")
        [row] = compare({"vgg11": tmp_path / "m.safetensors"}, models=[])
        readings.append(row.reading)
    assert readings[0] is not None
    assert readings[1] is not None
    assert (readings[0].N, readings[0].M, readings[0].slices) == (588, 64, 1)
    assert to_plain(readings[1]) == to_plain(
        readings[0]
    )  # dictionaries: records with NaN are unequal from Python 3.13 on


@pytest.mark.parametrize("layer", published.LAYERS, ids=lambda layer: layer.label)
def test_published_layers_are_among_those_that_are_read(layer: published.Published) -> None:
    """Name and shape are those of the model."""
    assert MODELS[layer.model].layers[layer.weight.removesuffix(".weight")] == layer.shape


@pytest.mark.usefixtures("caches")
@pytest.mark.parametrize("form", ["pth", "safetensors"])
def test_readings_stand_beside_published_ones(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """InceptionV3's two layers end to end: the σ of noise of deviation s is s·√N, N the longer side."""
    path = tmp_path / f"inception.{form}"
    weights = noise(MODELS["inception_v3"].layers)
    torch.save(weights, path) if form == "pth" else save_file(weights, path)
    assert main(["inception_v3", "--weights", f"inception_v3={path}"]) == 0
    shown = capsys.readouterr()
    assert shown.err == f"inception_v3: reading {path}\n"
    auxiliary, last = cells(shown.out)
    assert auxiliary[:3] == ["inception_v3", "AuxLogits.fc (L226)", "1000 × 768"]
    assert last[:3] == ["inception_v3", "fc (L302)", "1000 × 2048"]
    changes = [[cell.partition(" (")[2].rstrip(")") for cell in row[3:8]] for row in (auxiliary, last)]
    assert changes == [["5.257", "", "", "1.133", "118 or 15"], ["4.484", "", "", "1.024", "100"]]
    for row, n in ((auxiliary, 1000), (last, 2048)):
        assert float(row[6].split()[0]) == pytest.approx(DEVIATION * math.sqrt(n), rel=0.02)
        assert (row[7].split()[0], row[8]) == ("0", "random-like")
    assert "σ is in units of WᵀW" in shown.out


def test_what_is_not_in_a_file_is_reported_and_the_rest_is_read(tmp_path: Path) -> None:
    """AlexNet's last layer in a file of its own, in float64, and the two others missing."""
    path = tmp_path / "a.pth"
    torch.save(noise({"classifier.6": (1000, 4096)}), path)
    first, second, third = compare({"alexnet": path}, models=[])
    assert first.problem == f"{path}: it has no classifier.1.weight; are these the weights of another model?"
    assert first.reading is second.reading is None
    assert third.reading is not None
    assert (third.reading.N, third.reading.M, third.reading.precision) == (4096, 1000, "float64")
    lines = cells(markdown([first, third]))
    assert lines[0][3:] == ["– (2.288)", "– (0.0527)", "– (0.037)", "– (0.6852)", "– (400)", "not read"]
    assert lines[1][6] == f"{third.reading.measures['bulk_sigma'] * 64:.4g} (0.9866)"


def test_layers_without_published_values_have_ours_alone(tmp_path: Path) -> None:
    """ResNet-18."""
    path = tmp_path / "resnet.pth"
    torch.save(noise({"fc": (1000, 512)}), path)
    missing, last = compare({"resnet18": path}, models=["resnet18"])
    assert "it has no layer4.1.conv2.weight;" in missing.problem
    [row] = cells(markdown([last]))
    assert row[:3] == ["resnet18", "fc", "1000 × 512"]
    assert "(" not in "".join(row)
    assert float(row[6]) == pytest.approx(DEVIATION * math.sqrt(1000), rel=0.02)


def test_torchvisions_file_goes_before_timms(caches: Path) -> None:
    """In each the newest; batch-normalised VGG is another model, and so is InceptionV3 of another training."""
    hub, folder = caches / "hub", caches / "torch" / "hub" / "checkpoints"
    for other in ("vgg11_bn.tv_in1k", "inception_v3.gluon_in1k"):
        snapshot(hub, other)
    placed(folder / "vgg11_bn-6002323d.pth")
    assert find("vgg11") is None
    assert find("inception_v3") is None
    snapshot(hub, "vgg11.tv_in1k", age=5)
    newest = snapshot(hub, "vgg11.tv_in1k", revision="1")
    assert find("vgg11") == newest
    old = placed(folder / "vgg11-bbd30ac9.pth", age=20)
    placed(folder / "vgg11-8a719046.pth", age=30)
    assert find("vgg11") == old


def test_the_cache_of_hugging_face_is_where_its_variables_say(caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_HUB_CACHE, else HF_HOME/hub, else ~/.cache/huggingface/hub; a link that points nowhere does not count."""
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(caches))
    paths = [snapshot(caches / place, "resnet50.a1_in1k") for place in (".cache/huggingface/hub", "home/hub", "own")]
    assert find("resnet50") == paths[0]
    monkeypatch.setenv("HF_HOME", str(caches / "home"))
    assert find("resnet50") == paths[1]
    monkeypatch.setenv("HF_HUB_CACHE", str(caches / "own"))
    assert find("resnet50") == paths[2]
    link = placed(caches / "torch/hub/checkpoints/resnet50-0.pth")
    link.unlink()
    link.symlink_to(caches / "gone")
    assert find("resnet50") == paths[2]


def test_a_model_without_weights_is_marked(caches: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line a model says what is looked for; the table has what was published, and dashes for ours."""
    assert main([]) == 0
    shown = capsys.readouterr()
    lines = shown.err.splitlines()
    assert len(lines) == len(MODELS)
    assert lines[0] == (
        f"alexnet: {NO_WEIGHTS}: looked for alexnet-*.pth in {caches / 'torch' / 'hub' / 'checkpoints'}; "
        "or give --weights alexnet=PATH"
    )
    assert f"and models--timm--vgg11.*/snapshots/*/model.safetensors in {caches / 'hub'}; or" in lines[2]
    rows = cells(shown.out)
    assert len(rows) == sum(len(model.layers) for model in MODELS.values())
    assert all(row[8] == NO_WEIGHTS and all(cell.startswith("–") for cell in row[3:8]) for row in rows)
    assert rows[0][3:6] == ["– (2.288)", "– (0.0527)", "– (0.037)"]


@pytest.mark.usefixtures("caches")
def test_files_of_which_nothing_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2 and a line for each thing: a wrong shape, a weight that is not finite, a damaged file, none."""
    path = tmp_path / "a.pth"
    torch.save(
        {"fc.weight": torch.zeros(10, 512), "layer4.1.conv2.weight": torch.full((512, 512, 3, 3), math.nan)}, path
    )
    command = ["resnet18", "--weights", f"resnet18={path}"]
    assert main(command) == 2
    _, conv, last = capsys.readouterr().err.splitlines()
    assert conv.startswith(f"resnet18: {path}: layer4.1.conv2.weight is nonfinite: ")
    assert last.endswith("fc.weight is 10 × 512, expected 1000 × 512; are these the weights of another model?")
    path.write_bytes(path.read_bytes()[:100])
    assert main(command) == 2
    shown = capsys.readouterr()
    assert shown.err.splitlines()[1:] == [
        f"resnet18: {path} is truncated or not a torch checkpoint: File is not a zip file"
    ]
    assert [row[8] for row in cells(shown.out)] == ["not read", "not read"]
    path.unlink()
    assert main(command) == 2
    assert f"{path} does not exist" in capsys.readouterr().err


def test_a_wrong_shape_or_name_is_an_error_of_its_own() -> None:
    """Both names are given where timm's differs."""
    with pytest.raises(InputError, match=r"fc.weight is 10 × 2048, expected 1000 × 2048; are these the weights of"):
        locate(meta({"fc.weight": (10, 2048)}), "fc", (1000, 2048))
    with pytest.raises(InputError, match=r"layer4.2.conv3.weight is 2048 × 512 × 3 × 3, expected 2048 × 512 × 1 × 1"):
        locate(meta({"layer4.2.conv3.weight": (2048, 512, 3, 3)}), "layer4.2.conv3", (2048, 512, 1, 1))
    with pytest.raises(InputError, match=r"it has no classifier.0.weight or pre_logits.fc1.weight; are these"):
        locate(meta({"fc.weight": (10, 2048)}), "classifier.0", (4096, 25088))


def test_unknown_models_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """By name, in an argument and in a mapping."""
    with pytest.raises(InputError, match=r"unknown model 'alexnit'\. Available: alexnet, inception_v3"):
        compare({"alexnit": Path("a.pth")})
    with pytest.raises(SystemExit, match="2"):
        main(["alexnit"])
    assert "unknown model 'alexnit'. Available: alexnet" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["--weights", "alexnit=a.pth"])
    assert "Invalid MODEL=PATH 'alexnit=a.pth'. Available models: alexnet" in capsys.readouterr().err
