"""The command line: exit statuses, and one clear line for what the user can put right."""

import subprocess
import sys
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest
import torch

from esdmon.cli import main
from esdmon.cli.parser import LEAST_EIGENVALUES
from esdmon.weights import MIN_EIGENVALUES


def run_python(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a fresh interpreter and capture its output as text."""
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, cwd=cwd)


def without(package: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`esdmon …` in an interpreter in which a package cannot be imported."""
    code = (
        f"import sys; sys.modules[{package!r}] = None; from esdmon.cli import main; sys.exit(main({list(arguments)}))"
    )
    return run_python("-c", code, cwd=cwd)


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"]], ids=" ".join)
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Help goes to standard output, and it is not a failure."""
    with pytest.raises(SystemExit, match=r"^0$"):
        main(arguments)
    assert capsys.readouterr().out.startswith("usage: esdmon")


@pytest.mark.parametrize("subcommand", ["explain", "check", "replay"])
def test_help_of_a_subcommand_says_what_it_does(subcommand: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Between the usage and the arguments."""
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["alerts", subcommand, "--help"])
    _, description, *_ = capsys.readouterr().out.split("\n\n")
    assert description.startswith(("Print ", "Validate ", "Evaluate "))


def test_help_in_a_terminal_without_unicode() -> None:
    """Other characters stand for what it cannot show."""
    code = "import sys; sys.stdout.reconfigure(encoding='ascii'); from esdmon.cli import main; main(['scan', '--help'])"
    result = run_python("-c", code)
    assert (result.returncode, result.stderr) == (0, "")
    assert "analyse W - W0, where" in " ".join(result.stdout.split())


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
@pytest.mark.parametrize(
    ("arguments", "status"), [(["plugins"], 0), (["scan", "missing.pt"], 2), (["scan", "a.pt"], 0)]
)
def test_a_stream_that_the_shell_has_closed(closed: str, arguments: list[str], status: int, tmp_path: Path) -> None:
    """As in a cron job with `>&-`: the command runs, and its output is lost."""
    torch.save({"fc.weight": torch.randn(96, 64)}, tmp_path / "a.pt")
    code = f"import sys; sys.{closed} = None; from esdmon.cli import main; sys.exit(main({arguments}))"
    result = run_python("-c", code, cwd=tmp_path)
    assert result.returncode == status
    assert {"stdout": result.stdout, "stderr": result.stderr}[closed] == ""
    assert "Traceback" not in result.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is of Linux")
def test_an_error_has_its_status_where_standard_error_is_full(tmp_path: Path) -> None:
    """2, and not the 1 of a traceback, which a scan has for a weight that is wrong."""
    code = "import sys; from esdmon.cli import main; sys.exit(main(['scan', 'missing.pt']))"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", code], stderr=full, cwd=tmp_path, check=False)
    assert done.returncode == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is of Linux")
@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version"], ["scan", "--help"]], ids=" ".join)
def test_help_that_cannot_be_written_has_its_status(arguments: list[str]) -> None:
    """2, and one line, as for any other output that a full disk refuses."""
    code = f"import sys; from esdmon.cli import main; sys.exit(main({arguments}))"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "esdmon: cannot write: No space left on device\n")


def test_no_command_is_a_question(capsys: pytest.CaptureFixture[str]) -> None:
    """`esdmon` alone prints its help."""
    assert main([]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("usage: esdmon")
    assert captured.err == ""


def test_help_of_the_demo_states_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    """What is run without options can be read."""
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["demo", "--help"])
    text = capsys.readouterr().out
    assert all(f"(default: {default})" in " ".join(text.split()) for default in ("30", "0.02", "32", "0", "runs/demo"))


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """The version of what is installed."""
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["--version"])
    assert capsys.readouterr().out.strip() == version("esdmon")


def test_python_m_esdmon() -> None:
    """The package can be run where its script is not on the path."""
    result = run_python("-m", "esdmon", "--version")
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, version("esdmon"), "")


def test_the_script_is_installed() -> None:
    """`esdmon` on the path is this function."""
    (script,) = entry_points(group="console_scripts", name="esdmon")
    assert script.load() is main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["demp"], "Did you mean 'demo'?", id="misspelt-command"),
        pytest.param(["xyz"], "invalid choice: 'xyz' (choose from", id="unknown-command"),
        pytest.param(["demo", "--batch"], "argument --batch-size: expected one argument", id="no-value"),
        pytest.param(["demo", "--depth", "3"], "unrecognized arguments: --depth 3", id="unknown-option"),
        pytest.param(
            ["scan", "a", "--compares", "b"],
            "esdmon scan: error: unrecognized arguments: --compares b. Did you mean '--compare'?",
            id="misspelt-option",
        ),
        pytest.param(
            ["alerts", "replay", "a", "--jsom=x"],
            "esdmon alerts replay: error: unrecognized arguments: --jsom=x. Did you mean '--json'?",
            id="misspelt-option-with-a-value",
        ),
        pytest.param(
            ["demo", "--batch-size", "0"],
            "argument --batch-size: 0 is out of range: give a number from 1 to 1500",
            id="batch-size-0",
        ),
        pytest.param(["demo", "--batch-size", "1501"], "1501 is out of range", id="batch-size-above-all-digits"),
        pytest.param(["demo", "--batch-size", "8.5"], "'8.5' is not a whole number", id="batch-size-8.5"),
        pytest.param(["demo", "--lr", "fast"], "argument --lr: 'fast' is not a number", id="lr-word"),
        pytest.param(["demo", "--lr", "0"], "0 is out of range: give a number above 0 and at most 10", id="lr-0"),
        pytest.param(["demo", "--lr", "-1"], "-1 is out of range", id="lr-negative"),
        pytest.param(["demo", "--lr", "nan"], "nan is out of range", id="lr-nan"),
        pytest.param(["demo", "--lr", "inf"], "inf is out of range", id="lr-inf"),
        pytest.param(["demo", "--epochs", "0"], "0 is out of range: give a number from 1 to 10000", id="epochs-0"),
        pytest.param(["demo", "--epochs", ""], "'' is not a whole number", id="epochs-empty"),
        pytest.param(["demo", "--seed", "-1"], "-1 is out of range", id="seed-negative"),
        pytest.param(
            ["scan", "a.pt", "--max-eigenvalues", "9"],
            "argument --max-eigenvalues: 9 is out of range: give a number from 10 to 1000000000",
            id="max-eigenvalues-9",
        ),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 2; the last line on standard error says what is wrong, below the usage."""
    with pytest.raises(SystemExit, match=r"^2$"):
        main(arguments)
    captured = capsys.readouterr()
    *_, last = captured.err.splitlines()
    assert last.startswith("esdmon")
    assert message in last
    assert captured.out == ""


def test_the_smallest_max_eigenvalues_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the help and the error name as the smallest number is one that a scan accepts."""
    assert LEAST_EIGENVALUES == MIN_EIGENVALUES
    torch.save({"a.weight": torch.randn(20, 10), "b.weight": torch.randn(20, 11)}, tmp_path / "a.pt")
    assert main(["scan", str(tmp_path / "a.pt"), "--max-eigenvalues", str(LEAST_EIGENVALUES)]) == 0
    assert "not watched: b.weight (left out by --max-eigenvalues)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scan", "a.pt", "--layers", "fd*"], "esdmon scan: --layers 'fd*' matches no layer."),
        (["scan", "a.pt", "--exclude", "*"], "esdmon scan: no matrix is left to read: left out by --exclude"),
        (["scan", "a.pt", "--measures", "alfa"], "esdmon scan: unknown measure 'alfa' in --measures."),
        (["scan", "layers=3.pt"], "esdmon scan: layers=3.pt does not exist"),
        (["alerts", "replay", "a.jsonl", "--alerts", "b.toml"], "esdmon alerts: --alerts 'b.toml': file not found"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_errors_name_the_flags_of_the_command(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`--layers`, and not the `layers=` of Python; a path that looks like an option is unchanged."""
    monkeypatch.chdir(tmp_path)
    torch.save({"fc.weight": torch.randn(96, 64)}, "a.pt")
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith(message)


@pytest.mark.parametrize("below", ["file", "file/run", "file/a/run"])
def test_a_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str], below: str) -> None:
    """One line before anything is trained."""
    (tmp_path / "file").touch()
    out = tmp_path / below
    assert main(["demo", "--out", str(out)]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith(f"esdmon demo: --out {out} cannot be written: ")
    assert line.endswith("Choose another place.")
    assert captured.out == ""


def test_a_folder_that_is_in_use_and_has_no_name_to_number(capsys: pytest.CaptureFixture[str]) -> None:
    """The root of the file system is not empty, and there is no root-2 beside it."""
    assert main(["demo", "--epochs", "1", "--batch-size", "1500", "--out", "/"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("esdmon demo: --out / cannot be ")


@pytest.mark.parametrize(("package", "extra"), [("rich", "demo"), ("sklearn", "demo"), ("tensorboard", "tensorboard")])
def test_a_missing_extra(tmp_path: Path, package: str, extra: str) -> None:
    """One line says what to install, and there is no traceback."""
    result = without(package, "demo", cwd=tmp_path)
    (line,) = result.stderr.splitlines()
    assert result.returncode == 2
    assert line.startswith("esdmon demo: ")
    assert line.endswith(f'python -m pip install "esdmon[{extra}]"')


def test_control_c(tmp_path: Path) -> None:
    """A user who stops `python -m esdmon` sees one word, and the shell gets the status of an interrupt."""
    (tmp_path / "rich.py").write_text("raise KeyboardInterrupt\n")
    result = run_python("-m", "esdmon", "demo", cwd=tmp_path)
    assert result.returncode == 130
    assert result.stderr.strip() == "esdmon demo: stopped."
