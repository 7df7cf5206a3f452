"""Read folders of weights in the layouts of the libraries that write them.

The layout is never guessed: if the files of a folder contradict each other, an error lists them.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

from esdmon.errors import InputError, NoWeightsError
from esdmon.records.table import natural_key
from esdmon.records.text import named
from esdmon.weights.checkpoint import deepspeed, distributed
from esdmon.weights.checkpoint.containers import is_optimizer_name
from esdmon.weights.checkpoint.formats import (
    INDEX_SUFFIX,
    NOT_WEIGHTS,
    open_file,
    opener_of,
    other_folder,
    read_json,
)
from esdmon.weights.checkpoint.mapping import Checkpoint, join_checkpoints
from esdmon.weights.checkpoint.ranks import check_whole
from esdmon.weights.checkpoint.sentence_modules import MODULES, listed_modules
from esdmon.weights.checkpoint.unread_files import MEGATRON_FILE, folders_in, hint_for, is_weights, last_inside
from esdmon.weights.state.renamed import name_in_module

_STEMS = (
    *("model", "pytorch_model", "adapter_model", "diffusion_pytorch_model", "pytorch_lora_weights"),
    *("open_clip_model", "open_clip_pytorch_model"),
)
_SUFFIXES = (".safetensors", ".bin")  # the preferred one first
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{4,6})-of-(?P<count>\d{4,6})(?P<rest>\..+)")
_INDEX = re.compile(r".+\.index(\.\w+)?\.json")
_CONFIGS = ("adapter_config.json", "config.json", "open_clip_config.json")
_PIPELINE = "model_index.json"
_OF_PEFT = "base_model.model."
_FSDP_MODEL = re.compile(r"pytorch_model_fsdp_(?P<number>\d+)")
_MEGATRON_LATEST = "latest_checkpointed_iteration.txt"
_LONGEST_NAME = 256  # bytes of a file that names the last checkpoint; our choice
_MEGATRON_RANK = re.compile(r"mp_rank_\d+(_\d+)*")
_Parts = dict[str, tuple[Checkpoint, str]]


def open_folder(folder: Path) -> Checkpoint:
    """Open a folder of one model, or a pipeline of several.

    Raises:
        InputError: for a folder without weights, an incomplete one, and one that holds more than one model.
    """
    return _open_weights(folder).with_config(read_config(folder))


def read_config(folder: Path) -> dict[str, object]:
    """Return the configuration beside the weights; empty without one."""
    return next((content for name in _CONFIGS if (content := read_json(folder / name))), {})


def open_index(index: Path) -> Checkpoint:
    """Open the shards of an index; each tensor is read from the file that the index names for it.

    Raises:
        InputError: for a damaged index, a missing file, or a tensor that is not in its file.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise InputError(f"{index} is damaged: it has no weight_map of names to files")
    names = {name: file for name, file in weight_map.items() if not is_optimizer_name(name)}
    files = sorted(set(names.values()))
    outside = [file for file in files if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts]
    if outside:
        raise InputError(f"{index} is refused: it lists {outside[0]}, which is outside of its folder")
    missing = [file for file in files if not (index.parent / file).exists()]
    if missing:
        raise InputError(f"{index} lists what does not exist: {named(missing)}. Download it again")
    parts = {file: _open_one(index.parent / file) for file in files}
    lost = [name for name, file in names.items() if name not in parts[file]]
    if lost:
        raise InputError(f"{index} lists {lost[0]} in {names[lost[0]]}, which does not contain it")
    return join_checkpoints({name: (parts[names[name]], name) for name in sorted(names, key=natural_key)})


def _open_weights(folder: Path) -> Checkpoint:
    files = sorted(path.name for path in folder.iterdir() if path.is_file())
    if _PIPELINE in files:
        return _open_pipeline(folder)
    if MODULES in files and (modules := _open_modules(folder)) is not None:
        return modules
    if distributed.INDEX in files:
        return distributed.open_distributed(folder)
    if deepspeed.has_states(files) or "latest" in files:
        return _open_deepspeed(folder, files)
    if MEGATRON_FILE in files or _MEGATRON_LATEST in files or _megatron_ranks(folder):
        return _open_megatron(folder, files)
    return _open_standard(folder, files)


def _open_standard(folder: Path, files: Sequence[str]) -> Checkpoint:
    """Open the weights under their usual names, in one format; other formats of the same model are ignored."""
    indexes = [name for name in files if _INDEX.fullmatch(name)]
    for suffix in _SUFFIXES:
        usual = {f"{stem}{suffix}" for stem in _STEMS}
        wholes = [name for name in files if name in usual]
        usual_indexes = [name for name in indexes if name.removesuffix(INDEX_SUFFIX) in usual]
        if len(wholes) + len(usual_indexes) > 1:
            raise InputError(_too_many(folder, [*wholes, *usual_indexes]))
        if usual_indexes:
            return open_index(folder / usual_indexes[0])
        if wholes:
            return _open_with_siblings(folder, wholes[0], files)
    if len(indexes) == 1:
        return open_index(folder / indexes[0])
    return _open_others(folder, files)


def _open_with_siblings(folder: Path, name: str, files: Sequence[str]) -> Checkpoint:
    """Open a file, and beside it further models of the same run, as accelerate writes them: `model_1.safetensors`."""
    whole = Path(name)
    models = [name, *(each for each in files if re.fullmatch(rf"{whole.stem}_\d+{re.escape(whole.suffix)}", each))]
    if len(models) == 1:
        return _open_one(folder / name)
    return _join_apart({Path(each).stem: _open_one(folder / each) for each in sorted(models, key=natural_key)})


def _open_others(folder: Path, files: Sequence[str]) -> Checkpoint:
    """Open shards that are numbered in their names, or the only file of weights."""
    candidates = _candidates(folder, files)
    if not candidates:
        return _open_inside(folder)
    check_whole(folder / candidates[0])
    shards = _shards_of(candidates)
    if len(shards) > 1:
        sets = [f"{stem}-…-of-{count}{rest}" for stem, count, rest in shards]
        raise InputError(_too_many(folder, sets))
    if shards:
        ((_, count, _), names), *_ = shards.items()
        return _open_shards(folder, names, int(count))
    if len(candidates) == 1:
        try:
            return _open_one(folder / candidates[0])
        except InputError as error:
            inside = last_inside(folder)
            if not inside:
                raise
            raise InputError(f"{error}. Or pass a folder in {folder}, such as {inside}") from error
    first, last = (next(filter(partial(_may_be_model, folder), each), "") for each in (candidates, candidates[::-1]))
    if first != last:
        raise InputError(_too_many(folder, candidates, first, last))
    return _open_one(folder / (first or candidates[0]))


def _candidates(folder: Path, files: Sequence[str]) -> list[str]:
    """Return the files of weights under any name.

    Raises:
        InputError: if there are parts of a distributed checkpoint without their index.
    """
    if any(name.endswith(distributed.SUFFIX) for name in files):
        raise InputError(
            f"{folder} is incomplete: it has {distributed.SUFFIX} files without their index {distributed.INDEX}, "
            "which is written last. Pass an earlier checkpoint"
        )
    return [name for name in files if not NOT_WEIGHTS.search(name.lower()) and opener_of(folder / name)]


def _open_inside(folder: Path) -> Checkpoint:
    """Open the inner folders of a folder without files of weights, if accelerate has written them."""
    if models := _fsdp_models(folder):
        found = {name: open_folder(path) for name, path in models.items()}
        return _join_apart(found) if len(found) > 1 else found["model"]
    if other := other_folder(path.name for path in folder.iterdir()):
        raise InputError(f"{folder} is {other}")
    raise InputError(
        f"{folder} contains no checkpoint: neither a file of weights nor {distributed.INDEX}{hint_for(folder)}"
    )


def _fsdp_models(folder: Path) -> dict[str, Path]:
    """Return the folders of accelerate's distributed checkpoints, by the names of the models in its other formats."""
    found: dict[str, Path] = {}
    for path in sorted(folders_in(folder), key=lambda path: natural_key(path.name)):
        match = _FSDP_MODEL.fullmatch(path.name)
        if match and (path / distributed.INDEX).is_file():
            found[f"model_{match['number']}" if found else "model"] = path
    return found


def _may_be_model(folder: Path, name: str) -> bool:
    """Return whether a file holds a matrix, or cannot be opened; others may hold optimizers and normalisers."""
    try:
        weights = _open_one(folder / name)
    except NoWeightsError:
        return False
    except InputError:
        return True
    return any(len(outline.shape) > 1 for outline in weights.outlines.values() if not outline.is_nested)


def _shards_of(names: Iterable[str]) -> dict[tuple[str, str, str], dict[int, str]]:
    shards: defaultdict[tuple[str, str, str], dict[int, str]] = defaultdict(dict)
    for name in names:
        match = _SHARD.fullmatch(name)
        if match:
            shards[match["stem"], match["count"], match["rest"]][int(match["number"])] = name
    return shards


def _open_shards(folder: Path, names: Mapping[int, str], count: int) -> Checkpoint:
    numbers = range(min(1, *names), min(1, *names) + count) if len(names) > 1 else range(1, count + 1)
    missing = [number for number in numbers if number not in names]
    if missing:
        raise InputError(
            f"{folder} contains {len(names)} of {count} shards: number {missing[0]} is missing. Download it again"
        )
    parts: _Parts = {}
    for name in names.values():
        part = _open_one(folder / name)
        twice = next((inside for inside in part if inside in parts), None)
        if twice is not None:
            raise InputError(f"{folder} contains {twice} in two of its shards, one of them {name}")
        parts |= {inside: (part, inside) for inside in part}
    return join_checkpoints({name: parts[name] for name in sorted(parts, key=natural_key)})


def _open_pipeline(folder: Path) -> Checkpoint:
    """Open the components of a pipeline of diffusers, each under the name of its folder."""
    found: dict[str, Checkpoint] = {}
    for inside in sorted(path for path in folder.iterdir() if path.is_dir()):
        if any(path.is_file() and path.name.endswith(_SUFFIXES) for path in inside.iterdir()):
            found[inside.name] = open_folder(inside)
    if not found:
        raise InputError(f"{folder} is a pipeline of diffusers, and none of its components contains weights")
    return _join_apart(found)


def _open_modules(folder: Path) -> Checkpoint | None:
    """Open the modules of a model of sentence-transformers, each with its name before those in its file.

    Returns:
        None where `modules.json` lists none with weights.
    """
    parts: _Parts = {}
    config: dict[str, object] = {}
    for module in listed_modules(folder):
        place = folder / module["path"]
        files = sorted(path.name for path in place.iterdir() if path.is_file())
        if not any(is_weights(place / name) for name in files):
            continue
        checkpoint, own = _open_standard(place, files), read_config(place)
        prefix = module["name"]
        if "architectures" in own or (place / "adapter_config.json").is_file():  # a model of transformers inside
            config = config or own
            prefix += ".model" if ".modules." in module["type"] else ".auto_model"  # since 5.4, and before
        for name in checkpoint:
            parts[f"{prefix}.{name_in_module(name.removeprefix(_OF_PEFT), own)}"] = (checkpoint, name)
    return join_checkpoints(parts).with_config(config) if parts else None


def _open_deepspeed(folder: Path, files: Sequence[str]) -> Checkpoint:
    """Open a checkpoint of DeepSpeed, from its folder, or from the parent folder whose file `latest` names it."""
    name = _latest(folder / "latest")
    if name and (folder / name).is_dir():
        return open_folder(folder / name)
    return deepspeed.open_states(folder, files) if deepspeed.has_states(files) else _open_standard(folder, files)


def _latest(file: Path) -> str:
    """Return the name of the last checkpoint that a file beside it has; empty for a path, and without such a file."""
    if not file.is_file() or file.stat().st_size >= _LONGEST_NAME:
        return ""
    path = PurePosixPath(file.read_text(encoding="utf-8", errors="replace").strip())
    return path.name if len(path.parts) == 1 and path.name != ".." else ""


def _open_megatron(folder: Path, files: Sequence[str]) -> Checkpoint:
    """Open a checkpoint of Megatron: the folder of a rank, of an iteration, or of all, where a file names the last."""
    name = _latest(folder / _MEGATRON_LATEST)
    name = f"iter_{int(name):07d}" if name.isdecimal() else name
    if name and (folder / name).is_dir():
        return open_folder(folder / name)
    if name and not _megatron_ranks(folder):
        raise InputError(
            f"{folder} is incomplete: {_MEGATRON_LATEST} names {name}, which does not exist{hint_for(folder)}"
        )
    ranks = _megatron_ranks(folder.parent if MEGATRON_FILE in files else folder)
    if len(ranks) > 1:
        raise InputError(
            f"{folder} is split over {len(ranks)} ranks (tensor or pipeline parallel), which is not read: "
            "join it with Megatron's tools/checkpoint/convert.py first"
        )
    if MEGATRON_FILE in files:
        check_whole(folder / MEGATRON_FILE)
        return _open_one(folder / MEGATRON_FILE)
    return open_folder(folder / ranks[0]) if ranks else _open_standard(folder, files)


def _megatron_ranks(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and _MEGATRON_RANK.fullmatch(path.name))


def _join_apart(models: Mapping[str, Checkpoint]) -> Checkpoint:
    """Return several models as one, each under its name."""
    return join_checkpoints(
        {f"{model}.{name}": (checkpoint, name) for model, checkpoint in models.items() for name in checkpoint}
    )


def _open_one(path: Path) -> Checkpoint:
    checkpoint = open_file(path)
    if checkpoint is None:
        raise InputError(f"{path} is an index in the place of weights")
    return checkpoint


def _too_many(folder: Path, names: Sequence[str], first: str = "", last: str = "") -> str:
    examples = f"{first or names[0]} or {last or names[-1]}"
    return f"{folder} contains {len(names)} checkpoints. Pass one of them, such as {examples}"
