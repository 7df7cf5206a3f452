"""Models inside a file: among optimizers and copies of a model, in an archive of zip or tar."""

import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import esdmon
from esdmon.errors import InputError
from esdmon.weights import open_checkpoint
from tests.weights.checkpoint.folders import files, w

NESTED: dict[str, tuple[Callable[[dict[str, Tensor]], object], list[str]]] = {
    "an EMA copy": (
        lambda state: {"model": state, "ema": dict(state), "optG": {"state": {}, "param_groups": []}},
        ["a", "ema.a"],
    ),
    "a wrapped model and its copy": (
        lambda state: {
            "model": {f"module._orig_mod.{name}": weight for name, weight in state.items()},
            "model_ema": {"n_averaged": torch.tensor(3)} | {f"module.{name}": weight for name, weight in state.items()},
        },
        ["a", "model_ema.n_averaged", "model_ema.a"],
    ),
    "a wrapped model and one that is not": (
        lambda state: {"student": {f"module.{name}": weight for name, weight in state.items()}, "teacher": dict(state)},
        ["student.a", "teacher.a"],
    ),
    "two models": (lambda state: {"gen": state, "disc": dict(state)}, ["gen.a", "disc.a"]),
    "a wrapper of a wrapper": (lambda state: {"trainer": {"model": {"state_dict": state}, "epoch": 1}}, ["a"]),
    "an optimizer by its form": (
        lambda state: {"net": state, "x": [{"state": {0: {"m": w()}}, "param_groups": []}]},
        ["a"],
    ),
    "what lies beside a model": (
        lambda state: {
            "net": state,
            "opt_state": {0: {"GG": w()}},
            "grads": dict(state),
            "replay_buffer": {"obs": w()},
        },
        ["a"],
    ),
    "moments by their names": (lambda state: {"net": state, "x": {0: {"exp_avg": w(), "step": 3}}}, ["a"]),
    "Lightning": (lambda state: {"pytorch-lightning_version": "2", "state_dict": {"model.a": state["a"]}}, ["a"]),
    "Composer": (
        lambda state: {
            "state": {"model": state, "optimizers": {"SGD": {"state": {}}}, "timestamp": {"epoch": 3}},
            "rng": [{"torch": torch.zeros(5056, dtype=torch.uint8)}],
        },
        ["a"],
    ),
    "Lightning beside an average": (
        lambda state: {
            "pytorch-lightning_version": "2",
            "state_dict": {"model.a": state["a"]},
            "current_model_state": {"model.a": w()},
            "callbacks": {"Average": {"shadow": {"other.a": w()}}},
        },
        ["a", "current_model_state.a", "callbacks.Average.shadow.other.a"],
    ),
    "RVC": (lambda state: {"weight": state, "config": [1, 2], "sr": "40k"}, ["a"]),
    "CDPAM": (lambda state: {"epochs": 3, "optim": {"state": {}, "param_groups": []}, "state": state}, ["a"]),
    "nnU-Net": (lambda state: {"network_weights": state, "trainer_name": "x", "current_epoch": 3}, ["a"]),
    "a list": (lambda state: [state, dict(state)], ["0.a", "1.a"]),
}


@pytest.mark.parametrize("kind", NESTED)
def test_models_are_found_among_what_is_saved_with_them(kind: str, tmp_path: Path) -> None:
    """Each named apart where there are several."""
    make, names = NESTED[kind]
    torch.save(make({"a": w()}), tmp_path / "a.pt")
    assert list(open_checkpoint(tmp_path / "a.pt")) == names


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_the_model_in_an_archive_is_read(compression: int, tmp_path: Path) -> None:
    """As Stable-Baselines3 writes it, beside optimizers and variables; a compressed one is not read."""
    files(tmp_path / "agent", {"policy.pth": {"q_net.weight": w()}})
    for name in ("policy.optimizer.pth", "pytorch_variables.pth"):
        torch.save({"log_ent_coef": torch.zeros(1)}, tmp_path / "agent" / name)
    with zipfile.ZipFile(tmp_path / "agent.zip", "w", compression) as archive:
        for path in (tmp_path / "agent").iterdir():
            archive.write(path, path.name)
    assert list(open_checkpoint(tmp_path / "agent")) == ["q_net.weight"]
    if compression == zipfile.ZIP_STORED:
        assert torch.equal(open_checkpoint(tmp_path / "agent.zip")["q_net.weight"], w())
    else:
        with pytest.raises(InputError, match="a zip archive with files of weights in it: unpack it first"):
            open_checkpoint(tmp_path / "agent.zip")


@pytest.mark.parametrize("count", [1, 2])
def test_a_tar_archive_of_one_file_of_weights(count: int, tmp_path: Path) -> None:
    """As NeMo writes it, with a configuration and a tokenizer; with two files it is not clear which is the model."""
    torch.save({"fc.weight": w(), "fc.bias": torch.ones(3)}, tmp_path / "model_weights.ckpt")
    (tmp_path / "model_config.yaml").write_text("target: nemo\n")
    with tarfile.open(tmp_path / "model.nemo", "w") as archive:
        archive.add(tmp_path / "model_config.yaml", "./model_config.yaml")
        for number in range(count):
            archive.add(tmp_path / "model_weights.ckpt", f"./{'more/' * number}model_weights.ckpt")
    if count == 1:
        (layer,) = esdmon.analyze(tmp_path / "model.nemo")
        (expected,) = esdmon.analyze({"fc.weight": w()})
        assert dict(layer.measures) == pytest.approx(dict(expected.measures), rel=0, nan_ok=True)
        (tmp_path / "model.nemo").write_bytes((tmp_path / "model.nemo").read_bytes()[:2000])
        with pytest.raises(InputError, match=r"model.nemo is a tar archive that is truncated or damaged"):
            esdmon.analyze(tmp_path / "model.nemo")
    else:
        with pytest.raises(InputError, match=r"model.nemo is a tar archive without a single file of torch.save"):
            esdmon.analyze(tmp_path / "model.nemo")
