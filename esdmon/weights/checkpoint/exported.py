"""Read the tables of weights in programs of `torch.export`, files of `torch.export.save` that end in `.pt2`.

Since torch 2.9 each model of a program has a table in JSON that describes its tensors, and blocks of numbers beside the
table. Programs of earlier versions contain a file of `torch.save`.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any
from zipfile import ZipFile

import torch

from esdmon.weights.checkpoint.pickled import PickleError
from esdmon.weights.checkpoint.stored import AnyStored, Storage, tensor_of, unsupported

STATE = re.compile(r"serialized_state_dict\.pt|[^/]+/data/weights/[^/]+\.pt")
"""Name in the archive of the file of `torch.save` with the weights: up to torch 2.7, and of 2.8."""
FOLDER = "data/weights/"
"""Folder of the tables and the blocks, inside the folder that contains the whole archive."""
_TABLE = re.compile(rf"([^/]+/){FOLDER}(.+)_weights_config\.json")
_FIRST = (
    *("uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"),
    *("complex32", "complex64", "complex128", "bool", "bfloat16"),
)
_LATER = (
    *("uint16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"),
    *("uint32", "uint64"),
)
DTYPES = dict(enumerate(_FIRST, start=1)) | dict(enumerate(_LATER, start=28))
"""Dtypes by their numbers in the schema of torch.export (`torch/_export/serde/schema.py` of torch 2.13)."""
_STRIDED = 7  # number of the layout in that schema
_PROGRAM = "a program of torch.export: save the model's state_dict()"


def tables_in(names: Iterable[str]) -> dict[str, str]:
    """Return the names of the tables in an archive, by model; empty for a file of another kind."""
    return {match[2]: match[0] for name in names if (match := _TABLE.fullmatch(name))}


def read_tables(archive: ZipFile, tables: Mapping[str, str], sizes: Mapping[str, int]) -> Mapping[str, Any]:
    """Return the tensors of a program by name; if it has several models, by model and name.

    Args:
        archive: the file.
        tables: names of the tables, by model.
        sizes: bytes of each block beside them.

    Raises:
        PickleError: for a table that is damaged.
    """
    models: dict[str, dict[str, AnyStored]] = {}
    try:
        for model, table in tables.items():
            entries = json.loads(archive.read(table))["config"]
            models[model] = {name: _stored(entry, sizes) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        msg = f"a table of weights in it is damaged: {error}"
        raise PickleError(msg) from error
    return models if len(models) > 1 else next(iter(models.values()))


def _stored(entry: Mapping[str, Any], sizes: Mapping[str, int]) -> AnyStored:
    meta, key = entry["tensor_meta"], entry["path_name"]
    dtype = getattr(torch, DTYPES.get(meta["dtype"], ""), None)
    shape, stride = ([side["as_int"] for side in meta[sides]] for sides in ("sizes", "strides"))
    if entry["use_pickle"]:
        return unsupported(f"a tensor of a class of its own in {_PROGRAM}", shape, dtype)
    if dtype is None or meta["layout"] != _STRIDED:
        return unsupported(f"a tensor of an unknown dtype or layout in {_PROGRAM}", shape, dtype)
    if sizes[key] == 0 < math.prod(shape):
        return unsupported("the program of torch.export was saved without its numbers", shape, dtype)
    return tensor_of(Storage(key, dtype, sizes[key] // dtype.itemsize), meta["storage_offset"]["as_int"], shape, stride)
