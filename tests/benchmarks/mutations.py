"""Create small checkpoints of each format, and damage them or make them hostile, for `fuzz_checkpoints`."""

import io
import json
import pickle
import pickletools
import shutil
import struct
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import gguf
import torch
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed
from torch.nn.utils import spectral_norm, weight_norm

CANARY = "fuzz-canary"
"""Name of the file that hostile pickles write where they are run, in the working directory."""
_NASTY_NUMBERS = (0, -1, 1, 7, 255, 1 << 16, (1 << 31) - 1, 1 << 40, (1 << 62) + 1, -(1 << 63), 10**30)
_NASTY_VALUES: tuple[Any, ...] = (
    *(None, True, 0.5, 1e308, float("inf"), "", "F32", "x" * 5000, "../../etc/passwd", "a\nb", "\ud800", [], {}),
    *([0, 0], [1 << 40, 1 << 40], {"a": {"b": []}}, [[[[]]]], *_NASTY_NUMBERS),
)
_HOSTILE_GLOBALS = (
    *("os system", "posix system", "builtins eval", "builtins exec", "builtins getattr", "subprocess Popen"),
    *("torch load", "torch _utils", "torch FloatStorage", "numpy.core.multiarray _reconstruct", "a" * 3000 + " b", " "),
    *("collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_sparse_tensor"),
    *("torch._tensor _rebuild_from_type_v2", "torch.jit._pickle build_intlist", "__main__ Missing"),
)


def _weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (30, 12), "layers.0.weight": (24, 12), "layers.0.bias": (24,)}
    shapes["conv.weight"] = (12, 6, 3, 3)
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return weights | {"layers.1.weight": weights["layers.0.weight"].half(), "head.weight": weights["embed.weight"]}


def _state() -> dict[str, Any]:
    """A training state, with what scripts keep beside the weights."""
    optimizer = {"state": {0: {"exp_avg": torch.zeros(24, 12)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    return {"model": _weights(), "optimizer": optimizer, "args": Namespace(lr=0.1, out=Path("x")), "epoch": 3}


def _write_pt(folder: Path) -> None:
    torch.save(_state(), folder / "model.pt")


def _write_legacy(folder: Path) -> None:
    torch.save(_state(), folder / "model.pth", _use_new_zipfile_serialization=False)


def _write_module(folder: Path) -> None:
    torch.save(_module(), folder / "model.pt")


def _write_legacy_module(folder: Path) -> None:
    torch.save({"model": _module(), "epoch": 3}, folder / "model.pth", _use_new_zipfile_serialization=False)


def _write_pickle(folder: Path) -> None:
    with (folder / "model.pkl").open("wb") as file:
        pickle.dump({"net": _module(), "weights": _weights(), "args": Namespace(lr=0.1)}, file)


def _module() -> nn.Module:
    """A network with a layer of each kind that is recognised by its attributes, and weights that hooks compute."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(12, 24, 3, groups=2), nn.Embedding(30, 12), nn.LSTM(12, 12), nn.MultiheadAttention(12, 3)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there are newer functions
            computed = [spectral_norm(nn.Linear(24, 12)), weight_norm(nn.Linear(24, 12))]
        return nn.Sequential(*layers, *computed, nn.LayerNorm((12, 12)))


def _write_program(folder: Path) -> None:
    torch.export.save(torch.export.export(_perceptron(), (torch.zeros(1, 12),)), folder / "model.pt2")


def _write_older_program(folder: Path) -> None:
    write_older_program(folder / "model.pt2", _perceptron().state_dict())


def write_older_program(path: Path, state: Mapping[str, torch.Tensor]) -> None:
    """Write the files that `torch.export.save` of torch 2.7 puts into an archive, without a program."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo("serialized_exported_program.json"), "{}")
        for name, content in (("state_dict", state), ("constants", {}), ("example_inputs", ((), {}))):
            file = io.BytesIO()
            torch.save(content, file)
            archive.writestr(zipfile.ZipInfo(f"serialized_{name}.pt"), file.getvalue())


def _perceptron() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 12, bias=False)).eval()


def _write_safetensors(folder: Path) -> None:
    save_file({name: weight.clone() for name, weight in _weights().items()}, folder / "model.safetensors")


def _write_gguf(folder: Path) -> None:
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    writer.add_block_count(2)
    kinds = (gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.F16)
    for number, kind in enumerate(kinds):
        numbers = torch.randn(24, 32, generator=torch.Generator().manual_seed(number)).numpy()
        packed = gguf.quantize(numbers, kind)
        writer.add_tensor(f"blk.{number}.ffn_up.weight", packed, raw_dtype=kind if number == 0 else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_shards(folder: Path) -> None:
    weights = list(_weights().items())
    names: dict[str, str] = {}
    for number, part in enumerate((weights[:3], weights[3:]), start=1):
        shard = f"model-{number:05}-of-00002.safetensors"
        save_file({name: weight.clone() for name, weight in part}, folder / shard)
        names |= {name: shard for name, _ in part}
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": 9}, "weight_map": names})
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 12, "n_head": 3, "n_layer": 2}
    _write_json(folder / "config.json", config)


def _write_distributed(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no process group: none is needed
        state = {"model": _weights(), "optim": {"state": {"exp_avg": torch.zeros(24, 12)}}}
        save_distributed(state, checkpoint_id=folder)


def _write_adapter(folder: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for layer in ("q_proj", "v_proj"):
        prefix = f"base_model.model.layers.0.{layer}"
        weights[f"{prefix}.lora_A.weight"] = torch.randn(12, 40, generator=generator)
        weights[f"{prefix}.lora_B.weight"] = torch.randn(30, 12, generator=generator)
    save_file(weights, folder / "adapter_model.safetensors")
    config = {"r": 12, "lora_alpha": 24, "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {"q_proj": 6}}
    _write_json(folder / "adapter_config.json", config | {"peft_type": "LORA", "target_modules": ["q_proj", "v_proj"]})


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


WRITERS: dict[str, Callable[[Path], None]] = {
    "pt": _write_pt,
    "legacy pt": _write_legacy,
    "module": _write_module,
    "legacy module": _write_legacy_module,
    "pickle": _write_pickle,
    "program": _write_program,
    "older program": _write_older_program,
    "safetensors": _write_safetensors,
    "gguf": _write_gguf,
    "shards": _write_shards,
    "distributed": _write_distributed,
    "adapter": _write_adapter,
}
"""Name of a format -> writes a checkpoint of it into an empty folder."""


def mutate(folder: Path, rng: Random) -> str:
    """Change a checkpoint in one place or several, and return what was done."""
    done = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        if not files:
            break
        path = rng.choice(files)
        ways = [_mutate_bytes, _mutate_bytes, *_ways_for(path)]
        if rng.random() < 0.03 and len(files) > 1:
            ways = [_rename_or_remove]
        way = rng.choice(ways)
        done.append(f"{path.name}: {way(path, rng)}")
    return "; ".join(done)


Way = Callable[[Path, Random], str]


def _ways_for(path: Path) -> Sequence[Way]:
    if path.suffix == ".json":
        return [_mutate_json] * 4
    if path.suffix == ".safetensors":
        return [_mutate_header] * 4
    if path.suffix == ".distcp":
        return []
    if path.suffix == ".pt2":
        return [_mutate_archive] * 4
    return [_mutate_pickles] * 4 + [_make_hostile] if path.suffix != ".pt" else [_mutate_archive] * 4 + [_make_hostile]


def _mutate_bytes(path: Path, rng: Random) -> str:
    data = bytearray(path.read_bytes())
    if not data:
        return "empty"
    at, count = rng.randrange(len(data)), rng.choice((1, 2, 8, 100))
    if rng.random() < 0.5:
        at = min(at, rng.randrange(1, 400))  # headers are at the start
    what = rng.choice(("flip", "truncate", "delete", "insert", "zero", "ones", "repeat"))
    match what:
        case "flip":
            for place in {min(len(data) - 1, at + rng.randrange(count)) for _ in range(rng.randrange(1, 6))}:
                data[place] ^= 1 << rng.randrange(8)
        case "truncate":
            del data[at:]
        case "delete":
            del data[at : at + count]
        case "insert":
            data[at:at] = rng.randbytes(count)
        case "zero":
            data[at : at + count] = bytes(len(data[at : at + count]))
        case "ones":
            data[at : at + count] = b"\xff" * len(data[at : at + count])
        case _:
            data[at:at] = data[at : at + count] * rng.choice((1, 50))
    path.write_bytes(data)
    return f"{what} {count} at {at}"


def _rename_or_remove(path: Path, rng: Random) -> str:
    if rng.random() < 0.5:
        path.unlink()
        return "removed"
    other = path.with_name(rng.choice(("copy" + path.suffix, "model-00003-of-00009.safetensors", "x.bin")))
    if other != path:  # an earlier copy may be chosen
        shutil.copy(path, other)
    return "copied"


def _mutate_json(path: Path, rng: Random) -> str:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return _mutate_bytes(path, rng)
    path.write_bytes(json.dumps(_edited(content, rng)).encode("utf-8", "surrogatepass"))
    return "json edited"


def _edited(node: Any, rng: Random) -> Any:
    """Return a JSON value with a nasty one somewhere in it, or without a key, or with a key more."""
    if isinstance(node, dict) and node and rng.random() < 0.9:
        node, key = dict(node), rng.choice(list(node))
        match rng.randrange(6):
            case 0:
                del node[key]
            case 1:
                node[rng.choice(("", "x" * 300, "a\nb", "conv.weight", "\x1b[31m"))] = node[key]
            case _:
                node[key] = _edited(node[key], rng)
        return node
    if isinstance(node, list) and node and rng.random() < 0.7:
        place = rng.randrange(len(node))
        return [*node[:place], _edited(node[place], rng), *node[place + rng.choice((0, 1)) :]]
    return rng.choice(_NASTY_VALUES)


def _mutate_header(path: Path, rng: Random) -> str:
    """Edit the JSON of a `.safetensors` file, with the right length before it in nine of ten cases."""
    data = path.read_bytes()
    try:
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
    except (ValueError, struct.error, RecursionError, OverflowError):
        return _mutate_bytes(path, rng)
    text = json.dumps(_edited(header, rng)).encode("utf-8", "surrogatepass")
    text = b"[" * 100_000 if rng.random() < 0.05 else text
    shown = len(text) if rng.random() < 0.9 else rng.choice([abs(number) % (1 << 63) for number in _NASTY_NUMBERS])
    path.write_bytes(struct.pack("<Q", shown) + text + data[8 + length :])
    return "header edited"


def _mutate_archive(path: Path, rng: Random) -> str:
    """Rewrite a zip archive of `torch.save` with a changed pickle, or with other records."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = {name: archive.read(name) for name in archive.namelist()}
    except Exception:  # noqa: BLE001 -- it was damaged before
        return _mutate_bytes(path, rng)
    contents = [name for name in records if name.endswith(("data.pkl", "_weights_config.json"))]
    what = rng.choice(("content", "content", "content", "content", "drop", "rename", "grow", "compress"))
    name = rng.choice(list(records)) if what != "content" or not contents else contents[0]
    match what:
        case "content" if name.endswith(".json"):
            with suppress(ValueError, RecursionError):  # it was damaged before
                records[name] = json.dumps(_edited(json.loads(records[name]), rng)).encode("utf-8", "surrogatepass")
        case "content":
            records[name] = _mutated_pickle(records[name], rng)
        case "drop":
            del records[name]
        case "rename":
            records[rng.choice(("../../x", "data.pkl", "a/b/data.pkl", "x" * 200, name + "0"))] = records.pop(name)
        case "grow":
            records[name] = records[name] * rng.choice((0, 2, 100))
        case _:
            records[name] += bytes(1 << 22)
    _write_archive(path, records, zipfile.ZIP_DEFLATED if what == "compress" else zipfile.ZIP_STORED)
    return f"archive: {what} {name[-20:]}"


def _write_archive(path: Path, records: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            archive.writestr(
                zipfile.ZipInfo(name), content, compression
            )  # without the time, so that a case is the same


def _mutate_pickles(path: Path, rng: Random) -> str:
    path.write_bytes(_mutated_pickle(path.read_bytes(), rng))
    return "pickle edited"


def _mutated_pickle(data: bytes, rng: Random) -> bytes:
    """Return a pickle with some of its operations changed."""
    try:
        starts = [place for _, _, place in pickletools.genops(data) if place is not None]
    except Exception:  # noqa: BLE001 -- it was damaged before
        starts = list(range(len(data)))
    for _ in range(rng.choice((1, 1, 2, 5))):
        if not starts:
            return data
        which = rng.randrange(max(1, len(starts) - 1))
        start, end = starts[which], starts[which + 1] if which + 1 < len(starts) else len(data)
        data = data[:start] + _operation(data[start:end], rng) + data[end:]
        starts = [place if place <= start else place - end + start for place in starts if not start < place < end]
    return data


def _operation(operation: bytes, rng: Random) -> bytes:  # noqa: PLR0911 -- one for each kind
    match rng.randrange(8):
        case 0:
            return b""
        case 1:
            return operation * rng.choice((2, 2, 1000))
        case 2:
            return f"c{rng.choice(_HOSTILE_GLOBALS).replace(' ', chr(10))}\n".encode()
        case 3 | 4:
            return _integer(rng.choice(_NASTY_NUMBERS))
        case 5:
            return operation + rng.choice(list("(0.12NRbQadeiloqstu)}]\x81\x85\x86\x87\x88\x90\x94")).encode("latin-1")
        case 6:
            return rng.choice((b"N", b"}", b"]", b")", b"G" + struct.pack(">d", float("nan")), b"X\x00\x00\x00\x00"))
        case _:
            return bytes(rng.randrange(256) if rng.random() < 0.3 else byte for byte in operation)


def _integer(number: int) -> bytes:
    return pickle.dumps(number, protocol=2)[2:-1]


class _Payload:
    """Unpickled as usual, it writes the canary."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"open({CANARY!r}, 'w').close()",)


HOSTILE = ("payload", "payload beside weights", "nested", "laughs", "laughs as a key", "itself", "huge", "memo")
"""Pickles that run code, or whose objects are endless for whoever walks through them."""


def hostile_content(which: str, protocol: int = 2) -> bytes:
    """Return one of the pickles of `HOSTILE`."""
    laughs = b"q\x000" + b"(h\x00h\x00%bq\x000" * 60  # two times the one before: 2^60 paths
    contents = {
        "payload": pickle.dumps({"model": _Payload()}, protocol),
        "payload beside weights": pickle.dumps({"model": {"a": 1}, "x": [_Payload()]}, protocol),
        "nested": b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".",
        "laughs": b"\x80\x02]" + laughs.replace(b"%b", b"l") + b"}X\x01\x00\x00\x00ah\x00s.",
        "laughs as a key": b"\x80\x02)" + laughs.replace(b"%b", b"t") + b"}h\x00Ns.",
        "itself": b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.",
        "huge": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 50) + b"abc.",
        "memo": b"\x80\x02]r\xff\xff\xff\x7f.",
    }
    return contents[which]


def write_hostile(path: Path, which: str, protocol: int = 2) -> None:
    """Write one of the pickles of `HOSTILE` as an archive of `torch.save`, or alone for another suffix."""
    if path.suffix == ".pt":
        _write_archive(path, {"model/data.pkl": hostile_content(which, protocol), "model/version": b"3\n"})
    else:
        path.write_bytes(hostile_content(which, protocol))


def _make_hostile(path: Path, rng: Random) -> str:
    which = rng.choice(HOSTILE)
    write_hostile(path, which, rng.choice((0, 2, 4)))
    return f"hostile: {which}"
