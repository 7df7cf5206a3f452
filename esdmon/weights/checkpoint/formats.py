"""Recognise a file by its first bytes. Names are not reliable, such as `checkpoint.pth.tar` or a blob of a cache."""

import codecs
import json
import re
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

from esdmon.errors import InputError, is_address, printable
from esdmon.weights.checkpoint import exported, gguf_file, safetensors, torch_file
from esdmon.weights.checkpoint.file_part import open_part
from esdmon.weights.checkpoint.mapping import Checkpoint

INDEX_SUFFIX = ".index.json"
SUFFIXES = (*torch_file.SUFFIXES, safetensors.SUFFIX, gguf_file.SUFFIX)
"""Suffixes of the files that are read."""
NOT_WEIGHTS = re.compile(
    r"optim|scheduler|scaler|rng|random_states|training_args|sampler|dl_state|recipe_state|pytorch_variables"
    r"|^esdmon\.pt$"
)
"""Parts of names of other files beside weights, such as that of Stable-Baselines3 for tensors outside modules, and the
file with the state of a monitor."""
_MAX_HEADER = 100_000_000  # of a safetensors file, in bytes: the limit of its library
_FIRST = 512  # bytes that are looked at: a header of tar
_LEGACY_START = 32  # bytes that contain the number of the older layout, for any protocol
_GZIP = b"\x1f\x8b"
_OTHERS = {
    b"\x89HDF": "an HDF5 file: convert it to safetensors or a .pt file",
    b"version https://git-lfs": "a pointer of Git LFS in the place of a file: fetch it with `git lfs pull`",
    b"\x93NUMPY": "a NumPy array without a name: save a dict of named tensors as .safetensors or .pt",
    _GZIP: "compressed by gzip: unpack it first",
    b"<!doctype": "a web page in the place of a file: download it again",
    b"<html": "a web page in the place of a file: download it again",
    b"BZh": "compressed by bzip2: unpack it first",
    b"\xfd7zXZ": "compressed by xz: unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: unpack it first",
}
_OTHERS_BY_NAME = {
    ".onnx": "an ONNX graph: save its weights as safetensors or .pt",
    ".msgpack": "a checkpoint of Flax: convert it to safetensors",
    ".pdparams": "a checkpoint of Paddle: convert it to safetensors",
    ".tflite": "a model of TensorFlow Lite: convert it to safetensors",
    ".index": "a part of a checkpoint of TensorFlow: convert it to safetensors",
}
"""Kinds of binary files whose first bytes have no fixed form."""
_OTHER_FOLDERS = {
    "saved_model.pb": "a SavedModel of TensorFlow: convert it to safetensors",
    "manifest.ocdbt": "a checkpoint of Orbax: convert it to safetensors",
    "_METADATA": "a checkpoint of Orbax: convert it to safetensors",
    "_CHECKPOINT_METADATA": "a checkpoint of Orbax: convert it to safetensors",
}
_TEXT = "a text file, without weights"
_RUN = "If a run of esdmon wrote it, use esdmon report or esdmon tail"
_TAR = "a tar archive without a single file of torch.save: unpack it first"


def open_file(path: Path) -> Checkpoint | None:
    """Open a file with the weights of a model; None for an index of shards.

    Raises:
        InputError: for a file of another kind, or a damaged one.
    """
    try:
        size = path.stat().st_size
    except (FileNotFoundError, ValueError) as error:  # ValueError: no file can have this name
        remedy = ". It looks like an address: download the file, and pass its path" if is_address(str(path)) else ""
        raise InputError(f"{printable(str(path))} does not exist{remedy}") from error
    if size == 0:
        raise InputError(f"{path} is empty")
    first = _first_bytes(path)
    opener = _opener(path, first)
    if opener is None and torch_file.is_pickle(first):  # in a folder it is something else, such as a vocabulary
        opener = torch_file.open_pickle
    if opener is None and _is_tar(first):
        opener = _open_tar
    if opener is not None:
        return replace(opener(path), files=(path,))
    if path.name.endswith(INDEX_SUFFIX) or (path.suffix == ".json" and "weight_map" in read_json(path)):
        return None
    raise InputError(f"{path} {_what_it_is(path, first)}")


def opener_of(path: Path) -> Callable[[Path], Checkpoint] | None:
    """Return the function that opens a file of weights; None for any other kind of file, and for a text."""
    first = _first_bytes(path)
    is_text = first.isascii() and first.decode("ascii").replace("\n", " ").isprintable()
    return None if first and is_text else _opener(path, first)


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_FIRST)


def _opener(path: Path, first: bytes) -> Callable[[Path], Checkpoint] | None:
    if torch_file.is_zip(first):
        return _open_zip
    if _is_legacy(first):
        return torch_file.open_torch_file
    if _is_safetensors(first):
        return safetensors.open_safetensors
    if gguf_file.is_gguf(first):
        return gguf_file.open_gguf
    return None if _other_kind(first) else _opener_by_suffix(path, first)


def _opener_by_suffix(path: Path, first: bytes) -> Callable[[Path], Checkpoint] | None:
    """Return the function that opens a file by its suffix, for a damaged file or a pickle."""
    suffix = path.suffix.lower()
    if suffix == safetensors.SUFFIX:
        return safetensors.open_safetensors
    if suffix not in torch_file.SUFFIXES:
        return None
    return torch_file.open_pickle if torch_file.is_pickle(first) else torch_file.open_torch_file


def other_folder(names: Iterable[str]) -> str:
    """Return the kind of a folder with a checkpoint of another library, from the names in it; else empty."""
    return next((_OTHER_FOLDERS[name] for name in names if name in _OTHER_FOLDERS), "")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; empty for one that does not exist, is damaged, or holds another thing."""
    content = _load_json(path)
    return content if isinstance(content, dict) else {}


def read_json_objects(path: Path) -> list[dict[str, Any]]:
    """Return the objects in the list in a JSON file; none for one that does not exist, is damaged, or holds no list."""
    content = _load_json(path)
    return [each for each in content if isinstance(each, dict)] if isinstance(content, list) else []


def _load_json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _other_kind(first: bytes) -> str | None:
    """Return the kind of a file from its first bytes, in which HTML may be in capitals; None if it is unknown."""
    small = first[:16].lower() if first[:1] == b"<" else first
    return next((what for magic, what in _OTHERS.items() if small.startswith(magic)), None)


def _is_legacy(first: bytes) -> bool:
    # Protocol 2 or later, and then the number by which torch.save marks its files; further on in a file it is that of a
    # tensor in a pickle of another kind.
    return first[:1] == b"\x80" and b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19" in first[:_LEGACY_START]


def _is_tar(first: bytes) -> bool:
    return first[257:262] == b"ustar"


def _open_tar(path: Path) -> Checkpoint:
    """Open the file of `torch.save` in an archive, as NeMo writes one with a configuration beside it."""
    try:
        with tarfile.open(path, "r:") as archive:
            files = [member for member in archive.getmembers() if member.name.endswith(torch_file.SUFFIXES)]
    except tarfile.TarError as error:
        raise InputError(f"{path} is a tar archive that is truncated or damaged: {error}") from error
    if len(files) != 1 or not files[0].isfile():
        raise InputError(f"{path} is {_TAR}")
    return torch_file.open_torch_file(path, open_file=partial(_in_tar, path, files[0].name))


@contextmanager
def _in_tar(path: Path, name: str) -> Iterator[BinaryIO]:
    with tarfile.open(path, "r:") as archive, cast("BinaryIO", archive.extractfile(name)) as file:
        yield file


def _open_zip(path: Path) -> Checkpoint:
    """Open a file of `torch.save`, or the only one of weights in an archive, as Stable-Baselines3 writes it.

    An older program of `torch.export` has a file of weights beside others, of constants and inputs.
    """
    models: list[str] = []
    with suppress(Exception), zipfile.ZipFile(path) as archive:  # of many kinds for a damaged one, which is named below
        records = archive.infolist()
        models = [record.filename for record in records if exported.STATE.fullmatch(record.filename)]
        models = models or [record.filename for record in records if _is_model(record)]
    inside = partial(_in_zip, path, models[0]) if len(models) == 1 else None
    return torch_file.open_torch_file(path, open_file=inside)


def _is_model(record: zipfile.ZipInfo) -> bool:
    """Return whether a file in an archive may have weights; the files of a `torch.save` archive are in a folder."""
    name = record.filename.lower()
    is_whole = "/" not in name and record.compress_type == zipfile.ZIP_STORED
    return is_whole and name.endswith(torch_file.SUFFIXES) and not NOT_WEIGHTS.search(name)


@contextmanager
def _in_zip(path: Path, name: str) -> Iterator[BinaryIO]:
    with path.open("rb") as file:
        start, size = torch_file.place_of(file, zipfile.ZipFile(file).getinfo(name))
    with open_part(path, start, size) as part:
        yield part


def _is_safetensors(first: bytes) -> bool:
    return len(first) > 8 and first[8:9] == b"{" and 2 <= struct.unpack("<Q", first[:8])[0] <= _MAX_HEADER


def _what_it_is(path: Path, first: bytes) -> str:
    """Return what a file is that is not read; its name counts only where its bytes may be those of such a file."""
    suffix = path.suffix.lower()
    if path.name.lower().endswith(".jsonl.gz") and first.startswith(_GZIP):
        return f"is a compressed text file, without weights. {_RUN}"
    known = _other_kind(first) or (_TAR if _is_tar(first) else None)
    if known is None and _is_text(first):
        known = f"{_TEXT}. {_RUN}" if suffix == ".jsonl" else None
    elif known is None:
        known = _OTHERS_BY_NAME.get(suffix)
    if known is not None:
        return f"is {known}"
    kind = _TEXT if _is_text(first) else "binary data of an unknown kind"
    return f"is {kind}. Pass a {', '.join(SUFFIXES)} file, or a folder with one of them"


def _is_text(first: bytes) -> bool:
    """Return whether the first bytes of a file are a text in UTF-8, whose last character may be cut off."""
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(first)
    except UnicodeDecodeError:
        return False
    return all(each.isprintable() or each.isspace() for each in text)
