"""Names that scripts outside this repository use: each list here is frozen, and a change to it is a release note."""

import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import pytest
import torch

import esdmon
from esdmon.cli import main
from esdmon.plugins import hookspecs
from esdmon.records import Alert, LayerReport
from esdmon.version import installed_version

PUBLIC = {
    "Alert",
    "Coverage",
    "EsdmonError",
    "InputError",
    "LayerReport",
    "MissingExtraError",
    "Monitor",
    "Phase",
    "Report",
    "Run",
    "Spectrum",
    "analyze",
    "hookimpl",
    "load",
    "watch",
}
HOOKS = {
    "esdmon_register_measures": [],
    "esdmon_register_sinks": [],
    "esdmon_register_alert_rules": [],
    "esdmon_extract_matrices": ["name", "module"],
    "esdmon_materialize": ["parameter"],
    "esdmon_schedule": ["step"],
    "esdmon_request_stop": ["alert"],
    "esdmon_on_alert": ["alert"],
}
PHASES = {
    "random-like": 0,
    "bleeding-out": 1,
    "bulk+spikes": 2,
    "bulk-decay": 3,
    "heavy-tailed": 4,
    "rank-collapse": 5,
    "unclassified": -1,
}
LAYER_FIELDS = """
    name status reason view aliases computed N M Q slices n_eigenvalues n_parameters dtype precision step host_step
    emitted_step age trainable in_optimizer update_ratio step_ratio step_growth start_ratio zero_gradient
    learning_rate weight_decay extra unchanged dead_rows dead_columns dead_slices phase phase_code phase_confidence
    explanation alpha_is_meaningful over_regularized
"""
ALERT_FIELDS = "id rule severity state layer layers step since time message evidence"


def test_public_names() -> None:
    """Neither more nor less, each once, in order."""
    assert set(esdmon.__all__) == PUBLIC
    assert esdmon.__all__ == sorted(PUBLIC)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_public_names_are_what_they_say(name: str) -> None:
    """Loaded on first use, and no submodule has taken its place."""
    value = getattr(esdmon, name)
    assert value.__name__ == name
    assert value.__module__.startswith("esdmon.")
    assert value.__doc__


def test_star_import() -> None:
    """`from esdmon import *` brings the public names."""
    names: dict[str, object] = {}
    exec("from esdmon import *", names)  # noqa: S102 -- a star import is not allowed in a function
    assert names.keys() - {"__builtins__"} == PUBLIC


def test_dir_lists_the_public_names_before_they_are_loaded() -> None:
    """Completion in a notebook sees them in a fresh interpreter."""
    code = "import esdmon; print(*dir(esdmon))"
    listed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert set(listed) >= PUBLIC | {"__version__"}


def test_dir_lists_each_name_once() -> None:
    """Also those that are loaded already."""
    assert list(esdmon.Phase)
    assert len(dir(esdmon)) == len(set(dir(esdmon)))


def test_version() -> None:
    """That of what is installed."""
    assert esdmon.__version__ == version("esdmon")


@pytest.fixture
def version_is_read_again() -> Iterator[None]:
    """Forget the version before and after a test."""
    installed_version.cache_clear()
    yield
    installed_version.cache_clear()


@pytest.mark.usefixtures("version_is_read_again")
def test_a_source_tree_without_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are read where esdmon is on the path only, as in a container into which the source is copied."""

    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("esdmon.version.version", absent)
    assert esdmon.__version__ == "0+source"
    assert esdmon.analyze({"a": torch.randn(64, 64)})["a"].status == "ok"


def test_an_unknown_attribute_is_an_attribute_error() -> None:
    """Worded as Python words it, so that `hasattr` works."""
    with pytest.raises(AttributeError, match=r"^module 'esdmon' has no attribute 'wach'$"):
        _ = esdmon.wach
    assert not hasattr(esdmon, "wach")


@pytest.mark.parametrize(
    ("command", "options"),
    [
        pytest.param([], {"--help", "--version"}, id="esdmon"),
        pytest.param(
            ["demo"], {"--help", "--batch-size", "--lr", "--epochs", "--seed", "--out", "--healthy"}, id="esdmon-demo"
        ),
        pytest.param(["tail"], {"--help", "--once"}, id="esdmon-tail"),
    ],
)
def test_command_line_options(command: list[str], options: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Scripts pass them by name."""
    with pytest.raises(SystemExit, match=r"^0$"):
        main([*command, "--help"])
    assert set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out)) == options


def test_hooks() -> None:
    """Third parties implement them by name, and take arguments by name."""
    functions = inspect.getmembers(hookspecs, inspect.isfunction)
    hooks = {name: list(inspect.signature(hook).parameters) for name, hook in functions if name.startswith("esdmon_")}
    assert hooks == HOOKS


def test_phases() -> None:
    """Values are in records, codes in charts: both outlive a run."""
    assert {phase.value: phase.code for phase in esdmon.Phase} == PHASES


def test_fields_of_a_layers_record() -> None:
    """Columns of every table that was made of the JSONL, before any measure."""
    assert list(LayerReport("fc1", "ok", 1).to_record()) == LAYER_FIELDS.split()


def test_fields_of_an_alerts_record() -> None:
    """What an alert has, in the object and in its record."""
    alert = Alert("a", "rank_collapse", "error", "firing", "fc1", ("fc1",), step=2, since=1, message="collapsed")
    assert list(alert.to_record()) == ALERT_FIELDS.split()
    assert all(hasattr(alert, field) for field in ALERT_FIELDS.split())
