"""Fixtures for the tests of plugins."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from tests.plugins.given import Install


@pytest.fixture(autouse=True)
def _all_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enable the plugins that the environment of the tests disables."""
    monkeypatch.delenv("ESDMON_DISABLE_PLUGINS", raising=False)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install a distribution: `install(name, code)` makes a module that is the entry point of that name."""
    monkeypatch.syspath_prepend(tmp_path)
    installed: list[str] = []

    def put(name: str, code: str) -> None:
        module = f"esdmon_{name}_{len(installed)}"
        installed.append(module)
        (tmp_path / f"{module}.py").write_text(dedent(code))
        metadata = tmp_path / f"{module}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[esdmon]\n{name} = {module}\n")
        importlib.invalidate_caches()

    yield put
    for module in installed:
        sys.modules.pop(module, None)
