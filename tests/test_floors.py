"""Floors: imports point down, in the source and at run time, and importing does nothing else.

Both checks are needed: import-linter does not see that Python runs the parents of a module first, and a look at
`sys.modules` does not see an import that stands inside a function.
"""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OPTIONAL = {
    "accelerate",
    "lightning",
    "matplotlib",
    "pandas",
    "rich",
    "sklearn",
    "tensorboard",
    "transformers",
    "wandb",
}


def run_fresh(code: str, cwd: Path | None = None) -> str:
    """What code prints in an interpreter of its own, which must end well."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=cwd)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def assert_does_not_load(code: str, packages: set[str]) -> None:
    """Run code in an interpreter of its own and look at the modules that it has then."""
    loaded = {name.partition(".")[0] for name in run_fresh(f"{code}\nimport sys\nprint(*sys.modules)").split()}
    assert "esdmon" not in code or "esdmon" in loaded
    assert loaded & packages == set()


def test_imports_point_down() -> None:
    """The contracts of import-linter in pyproject.toml hold."""
    code = "from importlinter.cli import lint_imports_command\nlint_imports_command(['--no-cache', '--no-logo'])"
    assert "0 broken" in run_fresh(code, cwd=ROOT)


def test_files_can_be_held_in_the_head() -> None:
    """The package has fewer than 13 modules of its own, and no file has more than 330 lines."""
    files = [*(ROOT / "esdmon").rglob("*.py"), *(ROOT / "integrations").rglob("*.py")]
    lines = {path.relative_to(ROOT): path.read_text(encoding="utf-8").count("\n") for path in files}
    assert [f"{path}: {count}" for path, count in lines.items() if count > 330] == []
    assert len(list((ROOT / "esdmon").glob("*.py"))) < 13


def test_the_table_of_floors_is_that_of_the_contracts() -> None:
    """CONTRIBUTING.md names every package on its floor, and claims of no floor what no contract checks."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    by_name = {contract["name"]: contract for contract in contracts}
    linted = [re.split(r" [|:] ", layer) for layer in by_name["Imports point down"]["layers"]]
    rows = re.findall(
        r"^\| (`.*?) \| .*? \| (.*?)\|$", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert [re.findall(r"`(\w+)`", packages) for packages, _ in rows] == linted
    without_torch = {
        module
        for contract in contracts
        if "torch" in contract.get("forbidden_modules", ())
        for module in contract["source_modules"]
    }
    for packages, unknown in rows:
        if "tensors" in unknown:
            but = set(re.findall(r"`(\w+)`", unknown))
            for package in set(re.findall(r"`(\w+)`", packages)) - but:
                parts = {path.stem for path in (ROOT / "esdmon" / package).glob("[a-z]*")} - but
                modules = {f"esdmon.{package}.{part}" for part in parts}
                assert f"esdmon.{package}" in without_torch or modules <= without_torch, package


def test_no_solver_that_holds_the_interpreter_lock() -> None:
    """scipy.linalg would stall training from a background thread; numpy's and torch's solvers do not.

    One function may use it, which is for processes that do nothing else.
    """
    alone = ROOT / "esdmon" / "spectrum" / "lapack.py"
    for path in {*(ROOT / "esdmon").rglob("*.py"), *(ROOT / "integrations").rglob("*.py")} - {alone}:
        names = {
            name
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            for name in (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [f"{node.module}.{alias.name}" for alias in node.names]
                if isinstance(node, ast.ImportFrom)
                else []
            )
        }
        assert not [name for name in names if name.startswith("scipy.linalg")], path


@pytest.mark.parametrize(
    ("code", "packages"),
    [
        pytest.param("import esdmon", {"torch", "numpy", "pluggy", "scipy"}, id="esdmon"),
        pytest.param("import esdmon.cli", {"torch", "numpy", "pluggy", "scipy"}, id="cli"),
        pytest.param("from esdmon.spectrum import Spectrum", {"torch", "scipy", "pluggy", "logging"}, id="spectrum"),
        pytest.param("from esdmon import Phase, Report, Alert", {"torch", "scipy", "pluggy"}, id="public-records"),
        pytest.param("import esdmon.isolation, esdmon.present.scalars", {"torch", "scipy", "pluggy"}, id="records"),
        pytest.param("import esdmon.schedule.priority", {"torch", "numpy", "pluggy"}, id="schedule"),
        pytest.param("from esdmon.sinks import JsonlSink", {"torch", "scipy", "pluggy"}, id="sinks"),
        pytest.param("import esdmon.alerts", {"torch", "scipy", "pluggy"}, id="alerts"),
        pytest.param("import esdmon.weights", {"scipy", "pluggy"}, id="weights"),
        pytest.param("from esdmon.plugins import Plugins; Plugins()", {"torch", "scipy"}, id="plugins"),
        pytest.param("import esdmon, esdmon_tensorboard", {"torch", "numpy", "scipy"}, id="esdmon_tensorboard"),
        pytest.param("import esdmon.runtime.workers.program", {"torch", "pluggy"}, id="worker-program"),
        pytest.param("import esdmon.webpage.report", {"torch", "scipy", "pluggy"}, id="webpage"),
        pytest.param("import esdmon; esdmon.watch", {"scipy"}, id="watch"),
    ],
)
def test_a_floor_loads_nothing_from_above(code: str, packages: set[str]) -> None:
    """Nor any package that is optional."""
    assert_does_not_load(code, packages | OPTIONAL)


@pytest.mark.parametrize(
    ("code", "package"),
    [
        pytest.param("import torch", "torch", id="directly"),
        pytest.param("import esdmon.weights", "torch", id="through-esdmon"),
        pytest.param("import scipy.linalg", "scipy", id="by-a-submodule"),
    ],
)
def test_the_check_can_fail(code: str, package: str) -> None:
    """A package that is loaded is caught by the very helper that the floors are checked with."""
    with pytest.raises(AssertionError, match=package):
        assert_does_not_load(code, {package})


def test_import_linter_can_fail(tmp_path: Path) -> None:
    """The way in which it is run here reports a broken contract."""
    for name, code in (("upper", ""), ("lower", "import floors.upper")):
        (tmp_path / "floors").mkdir(exist_ok=True)
        (tmp_path / "floors" / f"{name}.py").write_text(code)
    (tmp_path / "floors" / "__init__.py").touch()
    (tmp_path / ".importlinter").write_text(
        "[importlinter]\nroot_package = floors\n"
        "[importlinter:contract:layers]\nname = Floors\ntype = layers\nlayers =\n  floors.upper\n  floors.lower\n"
    )
    code = "from importlinter.cli import lint_imports_command\nlint_imports_command(['--no-cache', '--no-logo'])"
    with pytest.raises(AssertionError, match="1 broken"):
        run_fresh(code, cwd=tmp_path)


def test_importing_changes_no_settings() -> None:
    """Logging, warnings, random numbers and threads are the host's own."""
    code = """
import logging, random, warnings
import numpy, pluggy, torch

def settings():
    return (
        logging.root.level, list(logging.root.handlers), logging.getLogger("esdmon").handlers, logging.raiseExceptions,
        list(warnings.filters), random.getstate(), torch.get_rng_state().tolist(), repr(numpy.random.get_state()),
        torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype(),
    )

before = settings()
import esdmon, esdmon.cli, esdmon_tensorboard
for name in esdmon.__all__:
    getattr(esdmon, name)
print("changed" if settings() != before else "the same")
"""
    assert run_fresh(code).strip() == "the same"
