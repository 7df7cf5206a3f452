"""Check the commands on the pages: those of esdmon run, in this process; of others it is checked what they name.

Installing, training for minutes and opening a browser are not for a test. What such a command names must exist: the
module, the file, the extra, the option.
"""

import importlib.util
import inspect
import re
import shlex
import tomllib

from sybil import Example

from esdmon.cli import main
from esdmon.cli.parser import make_parser
from tests.pages.prepared import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LONG = {"demo", "doctor"}
"""Commands of esdmon that take their time, and have tests of their own."""
TOOLS = {"tensorboard", "mkdocs", "mypy", "ruff", "lint-imports", "torchrun"}
"""Commands of packages that an extra or a dependency installs; lint-imports is that of import-linter."""


def check(example: Example) -> None:
    """Check each command of a block."""
    text = re.sub(r"\n +(?=[\[-])", " ", example.parsed)  # a command that goes on in the next line
    for line in text.splitlines():
        for command in line.split("&&"):
            words = shlex.split(command, comments=True)
            if words:
                check_command(words)


def check_command(words: list[str]) -> None:
    """Check one command."""
    match words:
        case ["esdmon", name, *_] if "[" in " ".join(words) or "…" in words:  # a synopsis
            assert_options(words, help_of(name))
        case ["esdmon", name, *_] if name in LONG:
            make_parser().parse_args(words[1:])
        case ["esdmon", *arguments]:
            assert main([word for word in arguments if word != "…"]) in (0, 1), words
        case ["python", "-m", "pip", "install", *arguments]:
            check_install(arguments)
        case ["python", "-m", module, *_] | ["torchrun", "--nproc-per-node", _, "-m", module, *_]:
            assert_options([word for word in words[3:] if word != "--nproc-per-node"], source_of(module))
        case ["python", path, *_]:
            assert (ROOT / path).is_file(), path
        case ["apt", "install", "chromium"]:
            pass
        case [tool, *_]:
            assert tool in TOOLS, f"{tool}: a command that this test does not know"
        case _:
            raise AssertionError(words)


def check_install(arguments: list[str]) -> None:
    """Check that the files, folders and extras of a `pip install` exist."""
    for before, word in zip(["", *arguments], arguments, strict=False):
        if before == "-c":
            assert (ROOT / word).is_file(), word
        elif word.startswith((".", "esdmon[")):
            path, _, extras = word.removeprefix("esdmon").rstrip("]").partition("[")
            assert (ROOT / path).is_dir(), path
            known = PROJECT["optional-dependencies"]
            assert set(filter(None, extras.split(","))) <= known.keys(), word
        else:
            assert word in {"-e", "-c", "--dry-run", "--no-deps", "-q"}, word


def help_of(command: str) -> str:
    """Return the help of a command of esdmon."""
    commands = make_parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    return str(commands[command].format_help())  # type: ignore[index]


def source_of(module: str) -> str:
    """Return the source of what `python -m` runs."""
    found = importlib.util.find_spec(module)
    assert found is not None, module
    name = module if found.submodule_search_locations is None else f"{module}.__main__"
    spec = importlib.util.find_spec(name)
    assert spec is not None, name
    assert spec.loader is not None
    if module == "esdmon":
        return inspect.getsource(importlib.import_module("esdmon.cli.parser"))
    return spec.loader.get_source(name) or ""  # type: ignore[attr-defined]


def assert_options(words: list[str], text: str) -> None:
    """Assert that a text knows all the options."""
    for option in re.findall(r"--[a-z][a-z-]+", " ".join(words)):
        assert option in text, option
