"""Files and folders without a model of ours: the error names their kind, and what to pass in their place."""

import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import esdmon
from esdmon.errors import InputError
from esdmon.weights import open_checkpoint
from tests.weights.checkpoint.folders import files, w


def zipped(*names: str) -> bytes:
    """Return an archive of files that hold zeros."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, bytes(99))
    return file.getvalue()


OTHER_FILES = {
    "model.safetensors": (b"GGUF" + bytes(99), "truncated or not a GGUF file"),
    "model.bin": (b"version https://git-lfs.github.com/spec/v1\noid x", "a pointer of Git LFS"),
    "model.pt": (b"\x1f\x8b123", "compressed by gzip"),
    "index.bin": (b"<!doctype html><html>", "a web page in the place of a file"),
    "agent.zip": (zipped("actor.pth", "critic.pth"), "a zip archive with files of weights in it"),
    "model.pt2": (zipped("model/archive_format"), "a program of torch with its weights in compiled code"),
    "model.npz": (zipped("fc.weight.npy"), "an archive of numpy arrays"),
    "model.keras": (zipped("model.weights.h5"), "a model of Keras"),
    "model.tar": (tarfile.TarInfo("a").tobuf(), "a tar archive"),
    "model.onnx": (b"\x08\x07\x12\x07pytorch", "an ONNX graph"),
}


class Forecaster:
    """What some libraries pickle beside their checkpoints."""

    def __init__(self) -> None:
        self.series = w().numpy()


NO_MODEL: dict[str, tuple[Any, str]] = {
    "an optimizer": ({"state": {0: {"exp_avg": w()}}, "param_groups": []}, "contains the state of an optimizer alone"),
    "numpy": ({"model": {"a": w().numpy()}}, "contains arrays of numpy in the place of tensors"),
    "a forecaster": (Forecaster(), r"an object \(.*Forecaster\) without tensors\. Its weights are in another file$"),
}


@pytest.mark.parametrize("kind", NO_MODEL)
def test_a_file_without_a_model_says_what_it_has(kind: str, tmp_path: Path) -> None:
    """Instead of its keys."""
    content, message = NO_MODEL[kind]
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(InputError, match=message):
        open_checkpoint(tmp_path / "a.pt")


def test_a_folder_whose_only_file_is_no_checkpoint_names_a_folder_inside(tmp_path: Path) -> None:
    """Where that has weights."""
    torch.save(Forecaster(), tmp_path / "_model.pth.tar")
    with pytest.raises(InputError, match=r"Its weights are in another file$"):
        open_checkpoint(tmp_path)
    files(tmp_path, {"checkpoints/last.ckpt": {"a": w()}})
    with pytest.raises(InputError, match=rf"another file\. Or pass a folder in {tmp_path}, such as checkpoints$"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", OTHER_FILES)
def test_another_kind_of_file_is_named(name: str, tmp_path: Path) -> None:
    """By its first bytes, what is in it, or its name, with what to do."""
    content, kind = OTHER_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name} is {kind}"):
        esdmon.analyze(tmp_path / name)


def test_a_folder_of_another_library_is_named(tmp_path: Path) -> None:
    """Instead of one of its folders."""
    (tmp_path / "d").mkdir()
    (tmp_path / "manifest.ocdbt").write_bytes(b"x")
    with pytest.raises(InputError, match="is a checkpoint of Orbax: convert it to safetensors"):
        esdmon.analyze(tmp_path)
