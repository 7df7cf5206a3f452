"""Read files of `torch.save` without running code that they may contain.

There are two layouts. Since torch 1.6 a file is an uncompressed zip archive of a pickle and one block of numbers for
each storage. Before, it was a sequence of pickles, followed by the blocks. Each tensor is read separately, on request.
"""

import io
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, final

from torch import Tensor

from esdmon.errors import InputError, NoWeightsError, UnreadableError
from esdmon.weights.checkpoint import exported
from esdmon.weights.checkpoint.containers import find_models, settings_of
from esdmon.weights.checkpoint.mapping import Checkpoint, checkpoint_of, join_checkpoints
from esdmon.weights.checkpoint.no_weights import refusal, why_nothing
from esdmon.weights.checkpoint.pickled import CodeError, Global, PickleError, everything, parse
from esdmon.weights.checkpoint.ranks import check_arguments
from esdmon.weights.checkpoint.stored import (
    BUILDERS,
    AnyStored,
    ReadBytes,
    Storage,
    Unsupported,
    outlines_of,
    storage_of,
)
from esdmon.weights.checkpoint.whole_model import rebuild

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".pt2")
_ZIP = b"PK\x03\x04"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LOCAL_HEADER = struct.Struct("<26xHH")  # lengths of the name and of the extra field, after which the record begins
_OTHER_ARCHIVES = {
    re.compile(r".+\.npy$"): "an archive of numpy arrays: save them as named tensors, in a .safetensors or .pt file",
    re.compile(r".+\.weights\.h5$"): "a model of Keras: convert it to safetensors or a .pt file",
    re.compile(
        r"([^/]+/)?archive_format$"
    ): "a program of torch with its weights in compiled code. Save the model's state_dict()",
    re.compile(r".+\.(pt|pth|ckpt|bin|safetensors)$"): "a zip archive with files of weights in it: unpack it first",
}
Open = Callable[[], AbstractContextManager[BinaryIO]]
Places = dict[str, tuple[int, int]]
"""Key of a storage -> (first byte in the file, number of bytes)."""


@final
class _Storages:
    """Reads the storages in a file, which is opened for each reading."""

    def __init__(self, open_file: Open, places: Places) -> None:
        self._open_file = open_file
        self._places = places
        self._blocks: dict[str, memoryview] = {}

    def read(self, key: str, first: int, count: int) -> bytearray:
        """Read bytes of a storage.

        Raises:
            PickleError: if it is truncated or missing.
        """
        start, size = self._place_of(key)
        if first + count > size:
            raise PickleError("a storage in it is truncated")
        buffer = bytearray(count)
        with self._open_file() as file:
            file.seek(start + first)
            if file.readinto(buffer) != count:  # type: ignore[attr-defined]  # of any file that is opened for reading
                raise PickleError("a storage in it is truncated")
        return buffer

    def read_shared(self, key: str, first: int, count: int) -> memoryview:
        """Return bytes of a storage that is read once and stays in memory; see `read`."""
        if key not in self._blocks:
            _, size = self._place_of(key)
            self._blocks[key] = memoryview(self.read(key, 0, size))
        return self._blocks[key][first : first + count]

    def _place_of(self, key: str) -> tuple[int, int]:
        if key not in self._places:
            msg = f"a storage in it is missing: {key[:40]}"
            raise PickleError(msg)
        return self._places[key]


def open_torch_file(path: Path, *, may_be_empty: bool = False, open_file: Open | None = None) -> Checkpoint:
    """Open a file that `torch.save` wrote: a state dict, a pickled module, or a training state that holds one.

    Args:
        path: of the file.
        may_be_empty: whether it may be the state dict of a module without parameters.
        open_file: opens it where it is a part of the file at `path`.

    Raises:
        InputError: for a damaged file, one without named weights, and one that calls for code to run.
    """
    with _clear_errors(path):
        content, storages = load_content(open_file or (lambda: path.open("rb")))
        if may_be_empty and content == {}:
            return join_checkpoints({})
        return _as_checkpoint(path, content, storages.read, storages.read_shared)


def open_pickle(path: Path) -> Checkpoint:
    """Open a file that pickle or joblib wrote: a state dict, a module, or an object that holds one.

    The storages of its tensors are in the pickle, each as `torch.save` writes it, so that all of them are in memory.

    Raises:
        InputError: for a damaged file, one without weights, and one that calls for code to run.
    """
    blocks: dict[str, memoryview] = {}
    left = path.stat().st_size

    def take(data: Any) -> Storage:
        nonlocal left
        content, places = _load_legacy(io.BytesIO(data))
        storage: Storage = content
        start, size = places[storage.key]
        left -= size
        if left < 0:  # one that is named twice would be in memory twice
            raise PickleError("its storages are larger than the file")
        key = str(len(blocks))
        blocks[key] = memoryview(bytearray(data[start : start + size]))
        return replace(storage, key=key)

    def read_bytes(key: str, first: int, count: int) -> memoryview:
        return blocks[key][first : first + count]

    # Protocols before 3 have no byte strings, and encode a text.
    builders = {
        **BUILDERS,
        "torch.storage._load_from_bytes": take,
        "_codecs.encode": lambda text, *_: text.encode("latin1"),
    }
    with _clear_errors(path), path.open("rb") as file:
        content = parse(file, builders)
        modules, tensors = find_models(content)
        if not modules and all(len(tensor.shape) < 2 for tensor in tensors.values()):
            # skorch pickles what may be on a GPU apart, into a byte string of each estimator.
            pickles = [value for value in everything(content) if isinstance(value, bytes) and is_pickle(value)]
            inside = [parse(io.BytesIO(data), builders) for data in pickles]
            content = inside if len(inside) > 1 else next(iter(inside), content)
        return _as_checkpoint(path, content, read_bytes, read_bytes)


def is_zip(first: bytes) -> bool:
    """Return whether a file with these first bytes is a zip archive."""
    return first.startswith(_ZIP)


def is_pickle(first: bytes) -> bool:
    """Return whether a file with these first bytes is a pickle, of protocol 2 or later."""
    return first[:1] == b"\x80" and first[1:2] in (b"\2", b"\3", b"\4", b"\5")


def load_content(open_file: Open) -> tuple[Any, _Storages]:
    """Return the content of a file as plain data with descriptions of its tensors, and its storages.

    Raises:
        PickleError: for a damaged file.
        InputError: for an archive of another kind.
    """
    with open_file() as file:
        first = file.read(len(_ZIP))
        file.seek(0)
        content, places = _load_zip(file) if is_zip(first) else _load_legacy(file)
        return content, _Storages(open_file, places)


def _as_checkpoint(path: Path, content: object, read_bytes: ReadBytes, read_shared: ReadBytes) -> Checkpoint:
    """Return the weights in the content of a file: of its modules, or its named tensors, read one by one.

    Args:
        path: of the file.
        content: what `parse` returned for it.
        read_bytes: reads bytes of a storage for one tensor.
        read_shared: reads them for tensors that stay in memory, and those of one storage share it.
    """

    def load_or_outline(tensor: AnyStored) -> Tensor:
        # One of a kind that is not read holds no numbers then, so that its layer alone is skipped.
        return tensor.outline() if isinstance(tensor, Unsupported) else tensor.load(read_shared)

    def read(name: str) -> Tensor:
        with _clear_errors(path):
            return found[name].load(read_bytes)

    check_arguments(content)
    found: dict[str, AnyStored]
    modules, found = find_models(content)
    if modules:
        return checkpoint_of(rebuild(modules, load_or_outline))
    if not found:
        raise NoWeightsError(why_nothing(content))
    unreadable = {name: tensor.reason for name, tensor in found.items() if isinstance(tensor, Unsupported)}
    return Checkpoint(outlines_of(found), read, unreadable=unreadable, config=settings_of(content))


@contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except CodeError as error:
        raise InputError(f"{path} {refusal(str(error))}") from error
    except InputError as error:
        kind = NoWeightsError if isinstance(error, NoWeightsError) else InputError
        raise kind(f"{path} {error}") from error
    except (OSError, UnreadableError):
        raise
    except Exception as error:  # of many kinds from zipfile, for archives with changed bytes
        msg = f"{path} is truncated or not a torch checkpoint: {error}"
        raise InputError(" ".join(msg.split())) from error


def _load_zip(file: BinaryIO) -> tuple[Any, Places]:
    archive = zipfile.ZipFile(file)
    names = archive.namelist()
    roots = [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
    if any(name.endswith("/extern_modules") for name in names):
        raise InputError("is an archive of torch.package, which contains code. Save the model's state_dict() instead")
    tables = exported.tables_in(names)
    if tables:
        root = next(iter(tables.values())).partition("/")[0] + "/"
        places = _places_below(file, archive, root, exported.FOLDER)
        sizes = {key: size for key, (_, size) in places.items()}
        return exported.read_tables(archive, tables, sizes), places
    if not roots:
        kind = next((what for pattern, what in _OTHER_ARCHIVES.items() if any(map(pattern.match, names))), "")
        if kind:
            raise InputError(f"is {kind}")
        raise PickleError("it is a zip archive without data.pkl")
    root = roots[0]
    places = _places_below(file, archive, root, "data/")
    start, size = place_of(file, archive.getinfo(f"{root}data.pkl"))
    file.seek(start)
    return parse(io.BytesIO(file.read(size)), BUILDERS, _storage_in_zip), places


def _places_below(file: BinaryIO, archive: zipfile.ZipFile, root: str, folder: str) -> Places:
    """Return the places of the records in a folder of an archive, by their names in it."""
    below = f"{root}{folder}"
    places = {
        record.filename.removeprefix(below): place_of(file, record)
        for record in archive.infolist()
        if record.filename.startswith(below)
    }
    end = file.seek(0, io.SEEK_END)
    if sum(size for _, size in places.values()) > end:  # they would be in memory more than once
        raise PickleError("its records overlap")
    byte_order = archive.read(f"{root}byteorder") if f"{root}byteorder" in archive.namelist() else b"little"
    if byte_order != b"little":
        raise PickleError("its numbers are big-endian")
    return places


def place_of(file: BinaryIO, record: zipfile.ZipInfo) -> tuple[int, int]:
    """Return the first byte and the size of a record in a zip archive.

    Raises:
        PickleError: for a compressed one.
    """
    if record.compress_type != zipfile.ZIP_STORED:
        raise PickleError("its records are compressed")
    file.seek(record.header_offset)
    name_length, extra_length = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    return record.header_offset + _LOCAL_HEADER.size + name_length + extra_length, record.file_size


def _storage_in_zip(identifier: Any) -> Storage:
    _, kind, key, _, numel = identifier
    return storage_of(kind, key, numel)


def _load_legacy(file: BinaryIO) -> tuple[Any, Places]:
    if parse(file, BUILDERS) != _LEGACY_MAGIC:
        raise PickleError("it is a pickle that torch.save did not write")
    parse(file, BUILDERS)  # the version of the layout
    system = parse(file, BUILDERS)
    if not isinstance(system, dict) or not system.get("little_endian", True):
        raise PickleError("its numbers are big-endian")
    storages: dict[str, Storage] = {}

    def load_persistent(identifier: Any) -> Storage | Global:
        if identifier[0] == "module":  # the class of a module, with its source code
            _, kind, *_ = identifier
            return Global(kind.name)
        _, kind, key, _, numel, view = identifier
        whole = storages.setdefault(str(key), storage_of(kind, key, numel))
        if view is None:
            return whole
        _, start, size = view
        return storage_of(kind, key, size, start=start)

    content = parse(file, BUILDERS, load_persistent)
    keys, begin = parse(file, BUILDERS), file.tell()
    end = file.seek(0, io.SEEK_END)
    file.seek(begin)
    places = {}
    for key in (str(key) for key in keys if isinstance(key, str | int)):
        (numel,) = struct.unpack("<q", file.read(8))
        size = numel * storages[key].dtype.itemsize if key in storages else -1
        if size < 0:
            raise PickleError("it lists a storage that no tensor has")
        places[key] = file.tell(), size
        if file.tell() + size > end:
            raise PickleError("a storage in it is truncated")
        file.seek(size, io.SEEK_CUR)
    return content, places
