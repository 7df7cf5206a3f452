"""`esdmon doctor`: what is installed here, what esdmon can use of it, and whether its readings are right."""

import importlib.metadata
import os
import platform
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

import esdmon
from esdmon.plugins import Plugins
from esdmon.runtime.workers.cpus import cores
from esdmon.selftest.harness import Machine, run
from esdmon.selftest.quick import QUICK_CHECKS

Line = tuple[str, str, bool]
"""A name, its text, and whether something is wrong with it."""
_CORE = ("torch", "numpy", "scipy", "pluggy")
_HOSTS = (
    "tensorboard",
    "pillow",
    "wandb",
    "lightning",
    "pytorch-lightning",
    "transformers",
    "accelerate",
    "safetensors",
    "gguf",
    "rich",
    "matplotlib",
    "pandas",
)
_SWITCHES: dict[str, Callable[[], object]] = {
    "float32_matmul_precision": torch.get_float32_matmul_precision,
    "cuda.matmul.allow_tf32": lambda: torch.backends.cuda.matmul.allow_tf32,
    "cudnn.allow_tf32": lambda: torch.backends.cudnn.allow_tf32,
    "cuda.matmul.fp32_precision": lambda: torch.backends.cuda.matmul.fp32_precision,
    "deterministic_algorithms": torch.are_deterministic_algorithms_enabled,
    "default_dtype": torch.get_default_dtype,
}
_WIDTH = 26


def show() -> int:
    """Print versions, devices, switches, hosts and plugins, then run the checks.

    Returns:
        Exit status: 1 if a check has failed, a package is older than what is supported, or a plugin cannot be used.
    """
    wrong = 0
    for title, lines in (
        ("system", _system()),
        ("packages", _packages()),
        ("devices", _devices()),
        ("precision switches of torch", _switches()),
        ("plugins", _plugins()),
    ):
        print(f"\n{title}" if title != "system" else title)
        for name, text, is_wrong in lines:
            print(f"  {name:<{_WIDTH}} {text}")
            wrong += is_wrong
    print()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    failed = run(QUICK_CHECKS, Machine(device))
    return int(failed > 0 or wrong > 0)


def _system() -> Iterator[Line]:
    yield "esdmon", esdmon.__version__, False
    yield "Python", f"{platform.python_version()}, {platform.python_implementation()}", False
    yield "system", platform.platform(), False
    yield "BLAS of numpy", _blas(), False


def _blas() -> str:
    """Return name and version of the linear algebra that numpy was built with."""
    config: Any = np.show_config(mode="dicts") or {}
    blas = config.get("Build Dependencies", {}).get("blas", {})
    return f"{blas.get('name', 'unknown')} {blas.get('version', '')}".strip()


def _packages() -> Iterator[Line]:
    """Yield what is installed of the packages that esdmon uses, against the versions that it supports."""
    least = _lower_bounds()
    for name in (*_CORE, *_HOSTS):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield name, "not installed" if name in _HOSTS else "MISSING: esdmon needs it", name in _CORE
            continue
        bound = least.get(name)
        if bound is None:
            yield name, version, False
        elif _numbers(version) < _numbers(bound):
            yield name, f"{version}, TOO OLD: at least {bound} is supported. Upgrade it.", True
        else:
            yield name, f"{version} (at least {bound})", False


def _lower_bounds() -> dict[str, str]:
    """Return the oldest supported versions; empty for a source tree that is not installed."""
    try:
        requirements = importlib.metadata.requires("esdmon") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    found = (re.match(r"([\w-]+)>=([\d.]+)", text) for text in requirements)
    return {match[1]: match[2] for match in found if match}


def _numbers(version: str) -> tuple[int, ...]:
    """Return the release as numbers, without zeros at its end: `2.13.0+cpu` is (2, 13)."""
    release = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(part) for part in release[0].split(".")] if release else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _devices() -> Iterator[Line]:
    yield "CPU", f"{os.cpu_count()} cores, {cores()} usable, {torch.get_num_threads()} threads of torch", False
    for number in range(torch.cuda.device_count()):
        its = torch.cuda.get_device_properties(number)
        yield f"cuda:{number}", f"{its.name}, {its.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}", False
    if torch.backends.mps.is_available():
        yield "mps", "found; readings of its weights are not tested", False
    if not torch.cuda.is_available():
        yield "CUDA", f"none found by torch {torch.__version__}", False


def _switches() -> Iterator[Line]:
    for name, get in _SWITCHES.items():
        try:
            text = str(get())
        except Exception as error:  # noqa: BLE001 -- torch raises where old and new switches were mixed, or are missing
            text = f"unknown ({type(error).__name__})"
        yield name, text, False


def _plugins() -> Iterator[Line]:
    for each in Plugins().listed:
        text = f"not used: {each.fault}" if each.fault else ", ".join(each.hooks)
        yield " ".join(filter(None, (each.name, each.version))), text, each.is_broken
