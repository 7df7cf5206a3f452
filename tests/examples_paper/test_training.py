"""Runs of the experiments: they resume, they come out the same, and their numbers are esdmon's."""

from pathlib import Path

import numpy as np
import pytest
import torch

import esdmon
from examples.paper import networks, training
from examples.paper.training import NETWORKS, Recipe, run

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
TINY = Recipe(network="SETOL MLP3", batch_size=256, lr=0.01, epochs=3)


def quietly(_share: float) -> None:
    pass


def test_shapes_are_the_papers() -> None:
    """Layer by layer, and a forward pass of one image."""
    shapes = {
        "MiniAlexNet": {"fc1": (384, 4096), "fc2": (192, 384), "fc3": (10, 192)},
        "small AlexNet": {"fc1": (384, 1024), "fc2": (192, 384)},
        "LeNet5": {"fc1": (500, 2450), "fc2": (10, 500)},
        "MLP3": {"fc0": (512, 2352), "fc1": (512, 512), "fc2": (512, 512)},
        "SETOL MLP3": {"fc1": (300, 784), "fc2": (100, 300), "fc3": (10, 100)},
    }
    for name, layers in shapes.items():
        network = NETWORKS[name]().eval()
        given = training.dataset("digits", name, 0.0, 0.5)
        images = given.train.images[:1]
        images = images.repeat(1, 3 if name == "MiniAlexNet" else 1, 1, 1)
        assert network(images).shape == (1, 10)
        for layer, shape in layers.items():
            assert network.get_submodule(layer).weight.shape == shape, (name, layer)


def test_mini_alexnet_starts_at_the_marchenko_pastur_law() -> None:
    """Stable rank and entropy of both layers, as theory has them and the paper measures them after one epoch."""
    torch.manual_seed(0)
    report = esdmon.analyze(networks.mini_alexnet(), layers=["fc1", "fc2"])
    fc1, fc2 = report["fc1"].measures, report["fc2"].measures
    assert fc1["stable_rank"] == pytest.approx(226, abs=3)
    assert fc2["stable_rank"] == pytest.approx(67.4, abs=2.5)
    assert fc1["matrix_entropy"] == pytest.approx(0.9921, abs=2e-4)
    assert fc2["matrix_entropy"] == pytest.approx(0.9525, abs=2e-3)
    assert {layer.phase for layer in report} == {esdmon.Phase.RANDOM_LIKE}


def test_a_result_is_read_back(tmp_path: Path) -> None:
    """Spectra, measures, history and the shuffled null; the second call trains nothing."""
    first = run(TINY, tmp_path, device=CPU, progress=quietly)
    stamp = first.path.stat().st_mtime_ns
    second = run(TINY, tmp_path, device=CPU, progress=quietly)
    assert second.path.stat().st_mtime_ns == stamp
    assert second.layers == first.layers
    assert second.spectra["fc1"].shape == (784, 300)
    assert second.measure("fc1", "stable_rank") == pytest.approx(
        float(second.spectra["fc1"].eigenvalues.sum() / second.spectra["fc1"].lambda_max), rel=1e-5
    )
    assert second.shuffled["fc1"]["phase"] == "random-like"
    assert second.history["epoch"]["epoch"][-1] == TINY.epochs
    assert len(second.history["fc1"]["stable_rank"]) == len(second.history["epoch"]["epoch"])
    assert 0 < second.test_accuracy <= 1


def test_a_stopped_run_ends_as_it_would_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after two of three epochs, with momentum, dropout and a history in its checkpoint."""
    recipe = Recipe(batch_size=512, lr=0.01, epochs=3, dropout=0.3)
    whole = run(recipe, tmp_path / "whole", device=CPU, progress=quietly)
    monkeypatch.setattr(training, "_SECONDS", 0)

    def stop(share: float) -> None:
        if share == 1:
            raise KeyboardInterrupt("by the user")

    with pytest.raises(KeyboardInterrupt, match="by the user"):
        run(recipe, tmp_path / "parts", device=CPU, progress=stop)
    assert [path.suffix for path in (tmp_path / "parts").iterdir()] == [".pt"]
    resumed = run(recipe, tmp_path / "parts", device=CPU, progress=quietly)
    assert resumed.layers == whole.layers
    assert resumed.history == whole.history
    assert sorted(path.suffix for path in (tmp_path / "parts").iterdir()) == [".json", ".npz"]


def test_a_run_that_diverges_is_kept_and_says_so(tmp_path: Path) -> None:
    """A learning rate far too high: no traceback, and it is not tried again."""
    recipe = Recipe(network="SETOL MLP3", batch_size=256, lr=1e12, epochs=3)
    result = run(recipe, tmp_path, device=CPU, progress=quietly)
    assert result.diverged
    assert np.isnan(result.train_loss)
    assert {record["status"] for record in result.layers.values()} == {"nonfinite"}
    assert result.spectra == {}


def test_names_tell_recipes_apart() -> None:
    """What is not usual is in the name, and nothing else."""
    assert Recipe().name == "small_AlexNet_digits_b16_lr0.004"
    assert Recipe(seed=1, dropout=0.5).name == "small_AlexNet_digits_b16_lr0.004_seed-1_dropout-0.5"
    assert Recipe(data="mnist:/a/b").name == "small_AlexNet_mnist--a-b_b16_lr0.004"
