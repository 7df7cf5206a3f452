"""List the modules of a model of sentence-transformers, with those behind a router, from the files that name them."""

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from esdmon.weights.checkpoint.formats import read_json, read_json_objects

MODULES = "modules.json"
_ROUTER = "router_config.json"


def listed_modules(folder: Path) -> Iterator[dict[str, str]]:
    """Iterate over name, path and type of the modules in `modules.json` with a folder inside this folder."""
    for module in read_json_objects(folder / MODULES):
        found = {key: value for key in ("name", "path", "type") if isinstance(value := module.get(key), str)}
        if len(found) < 3 or not _is_inside(folder, found["path"]):
            continue
        if (folder / found["path"] / _ROUTER).is_file() and found["type"].endswith(".Router"):
            yield from _routed(folder, found)
        else:
            yield found


def _routed(folder: Path, router: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Iterate over the modules of all routes, such as those for queries and for documents, each once."""
    settings = read_json(folder / router["path"] / _ROUTER)
    types, routes = (each if isinstance(each := settings.get(key), dict) else {} for key in ("types", "structure"))
    seen: set[str] = set()
    for route, names in routes.items():
        for number, name in enumerate(names if isinstance(names, list) else ()):
            path = str(PurePosixPath(router["path"], str(name)))
            if path in seen or not _is_inside(folder, path):
                continue
            seen.add(path)
            whole = f"{router['name']}.sub_modules.{route}.{number}"
            yield {"name": whole, "path": path, "type": str(types.get(name, ""))}


def _is_inside(folder: Path, path: str) -> bool:
    parts = PurePosixPath(path)
    return not parts.is_absolute() and ".." not in parts.parts and (folder / path).is_dir()
