"""`esdmon doctor`: it says what is installed, and its checks can fail."""

import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from esdmon.cli import main
from esdmon.selftest import quick

ROOT = Path(__file__).parents[2]


def check_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the checks out, which take some seconds."""
    monkeypatch.setattr("esdmon.cli.doctor.QUICK_CHECKS", ())


def test_a_healthy_machine(capsys: pytest.CaptureFixture[str]) -> None:
    """Versions with what is supported, devices, switches, plugins; every check passes."""
    assert main(["doctor"]) == 0
    output = capsys.readouterr().out
    assert re.search(rf"^  torch +{re.escape(metadata.version('torch'))} \(at least 2\.6\)$", output, re.MULTILINE)
    assert re.search(r"^  BLAS of numpy +\w", output, re.MULTILINE)
    assert re.search(r"^  CPU +\d+ cores", output, re.MULTILINE)
    assert re.search(r"^  float32_matmul_precision +highest$", output, re.MULTILINE)
    assert re.search(r"^  wandb .*esdmon_register_sinks$", output, re.MULTILINE)
    for check in ("spectra", "training", "files.jsonl", "files.tensorboard"):
        assert re.search(rf"^{check} +\| PASS ", output, re.MULTILINE), output


def test_each_package_of_an_extra_for_users_is_listed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of trackers, which have sinks of their own, and of the demo are left out."""
    check_nothing(monkeypatch)
    main(["doctor"])
    listed = set(re.findall(r"^  ([\w-]+) ", capsys.readouterr().out, re.MULTILINE))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra in ("tensorboard", "wandb", "lightning", "transformers", "scan", "gguf", "notebook"):
        assert {requirement.partition(">=")[0] for requirement in extras[extra]} <= listed, extra


def test_wrong_readings_are_a_failure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Each kind of known matrix, with another in its place."""
    known = quick._known()
    monkeypatch.setattr(quick, "_known", lambda: dict(zip(known, reversed(known.values()), strict=True)))
    assert main(["doctor"]) == 1
    output = capsys.readouterr().out
    (line,) = re.findall(r"^spectra .*$", output, re.MULTILINE)
    assert "FAIL" in line
    assert "noise: rank-collapse, not random-like" in line
    assert "n_spikes is" in line
    assert re.search(r"^training +\| PASS ", output, re.MULTILINE)


def installed(folder: Path, name: str, version: str) -> None:
    """Put the metadata of a package before that of the environment."""
    (folder / f"{name}-{version}.dist-info").mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    (folder / f"{name}-{version}.dist-info" / "METADATA").write_text(metadata, encoding="utf-8")


def test_a_package_that_is_too_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is named with the remedy; 2.10 is newer than 2.6, and 4.51.0 as new as 4.51."""
    check_nothing(monkeypatch)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, version in (("lightning", "2.3.3"), ("torch", "2.10.1+cpu"), ("transformers", "4.51.0")):
        installed(tmp_path, name, version)
    assert main(["doctor"]) == 1
    output = capsys.readouterr().out
    assert re.search(r"lightning +2\.3\.3, TOO OLD: at least 2\.\d is supported\. Upgrade it\.", output)
    assert "2.10.1+cpu (at least 2.6)" in output
    assert "4.51.0 (at least 4.51)" in output


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_a_source_tree_that_is_not_installed(option: str, tmp_path: Path) -> None:
    """Without the metadata of a distribution, and here without any other package."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-S", "-m", "esdmon", option]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("usage: esdmon" if option == "--help" else "0+source")
