"""Pretrained layers beside the published values, on random weights of exactly their shapes."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from esdmon import InputError
from examples.paper import pretrained
from examples.paper.pretrained import MODELS, compare, find, main, markdown
from tests import architectures


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches of torchvision and timm."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def weights(model: str, deviation: float = 0.02) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {f"{layer}.weight": deviation * torch.randn(shape) for layer, shape in MODELS[model].layers.items()}


def test_shapes_are_those_of_the_architectures() -> None:
    """As torchvision builds them."""
    with torch.device("meta"):
        alexnet, vgg, inception = architectures.alexnet(), architectures.vgg11(), architectures.inception_v3()
    linear = {
        name: [tuple(m.weight.shape) for m in model.modules() if isinstance(m, torch.nn.Linear)]
        for name, model in (("alexnet", alexnet), ("vgg11", vgg), ("inception_v3", inception))
    }
    for name, shapes in linear.items():
        assert list(MODELS[name].layers.values()) == shapes


def test_every_layer_is_found_in_a_file_of_its_model(tmp_path: Path) -> None:
    """By name and shape, in files that hold no numbers to speak of."""
    for model, known in MODELS.items():
        tensors = {f"{layer}.weight": torch.zeros(1).expand(shape) for layer, shape in known.layers.items()}
        path = tmp_path / f"{model}.pth"
        torch.save(tensors, path)
        for layer, shape in known.layers.items():
            assert pretrained._weight(path, layer, shape).shape == shape


@pytest.mark.parametrize("form", ["pth", "safetensors"])
def test_readings_stand_beside_what_was_published(form: str, caches: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """σ in the paper's unit: that of WᵀW, √N times the deviation of the elements."""
    path = caches / f"inception.{form}"
    if form == "pth":
        torch.save(weights("inception_v3"), path)
    else:
        save_file(weights("inception_v3"), path)
    rows = compare({"inception_v3": path})
    assert [row.layer for row in rows] == ["AuxLogits.fc", "fc"]
    assert [(row.reading.N, row.reading.M) for row in rows if row.reading] == [(1000, 768), (2048, 1000)]
    lines = markdown(rows).splitlines()
    assert "AuxLogits.fc (L226)" in lines[2]
    assert "(5.257)" in lines[2]
    sigma = float(lines[3].split("|")[8].split()[0])
    assert sigma == pytest.approx(0.02 * math.sqrt(2048), rel=0.02)
    assert "random-like" in lines[3]
    assert main(["--models", "inception_v3", "--weights", f"inception_v3={path}"]) == 0
    assert capsys.readouterr().out.strip() == "\n".join(lines)


def test_weights_are_looked_for_where_their_libraries_keep_them(caches: Path) -> None:
    """torchvision's folder and timm's snapshots; the newest; batch-normalised VGG is another model."""
    assert find("vgg11") is None
    folder = caches / "torch" / "checkpoints"
    folder.mkdir(parents=True)
    for name in ("vgg11_bn-6002323d.pth", "vgg11-8a719046.pth"):
        (folder / name).touch()
    assert find("vgg11") == folder / "vgg11-8a719046.pth"
    snapshot = caches / "hub" / "models--timm--resnet18.a1_in1k" / "snapshots" / "0" / "model.safetensors"
    snapshot.parent.mkdir(parents=True)
    snapshot.touch()
    assert find("resnet18") == snapshot


def test_timms_names_are_known(tmp_path: Path) -> None:
    """Its VGG has the first two layers as convolutions, which are the same matrices."""
    save_file({"head.fc.weight": torch.zeros(1000, 4096)}, tmp_path / "m.safetensors")
    assert pretrained._weight(tmp_path / "m.safetensors", "classifier.6", (1000, 4096)).shape == (1000, 4096)
    save_file({"pre_logits.fc2.weight": torch.zeros(64, 64, 1, 1)}, tmp_path / "n.safetensors")
    assert pretrained._weight(tmp_path / "n.safetensors", "classifier.3", (64, 64)).shape == (64, 64)


@pytest.mark.usefixtures("caches")
def test_a_model_without_weights_is_marked_and_no_figure_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    """What was published is shown, ours is a dash."""
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    assert len(lines) == sum(len(model.layers) for model in MODELS.values())
    assert all("no weights on this machine" in line for line in lines)
    assert "– (2.288) | – (0.0527) | – (0.037)" in lines[0]


def test_other_weights_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A missing layer, a wrong shape, a damaged file, and an unknown model."""
    path = tmp_path / "a.pth"
    torch.save({"fc.weight": torch.zeros(10, 512)}, path)
    with pytest.raises(InputError, match=r"fc.weight is 10 × 512, expected 1000 × 512: is it the weights of another"):
        pretrained._weight(path, "fc", (1000, 512))
    with pytest.raises(InputError, match=r"a.pth has no classifier.0.weight or pre_logits.fc1.weight: is it"):
        pretrained._weight(path, "classifier.0", (4096, 25088))
    path.write_bytes(path.read_bytes()[:100])
    assert main(["--models", "resnet18", "--weights", f"resnet18={path}"]) == 2
    assert "is truncated, or no checkpoint of torch" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["--weights", "alexnit=a.pth"])
    assert "'alexnit=a.pth' is no MODEL=PATH with a model among alexnet" in capsys.readouterr().err
