"""Each optional package absent: what is imported works, and the first use says what to install."""

import subprocess
import sys
import textwrap

import pytest

BLOCKED = {
    "tensorboard": ["tensorboard"],
    "wandb": ["wandb"],
    "lightning": ["lightning", "lightning.pytorch", "pytorch_lightning"],
    "transformers": ["transformers"],
    "matplotlib": ["matplotlib"],
    **{name: [name] for name in ("mlflow", "trackio", "swanlab", "comet_ml", "clearml")},
}


def run(script: str, *packages: str) -> str:
    """In a process where importing those fails as if they were not installed."""
    blocked = [name for package in packages for name in BLOCKED[package]]
    start = f"""
        import sys
        class Absent:
            def find_spec(self, name, path=None, target=None):
                if name in {blocked!r} or name.split(".")[0] in {blocked!r}:
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        sys.meta_path.insert(0, Absent())
        import importlib.util
        found = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *rest: None if name in {blocked!r} else found(name, *rest)
        import esdmon, torch
        def fails(call):
            try:
                call()
            except ValueError as error:
                print(type(error).__name__, error)
    """
    whole = textwrap.dedent(start) + textwrap.dedent(script)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", whole], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "script", "extra"),
    [
        (
            "tensorboard",
            "import esdmon_tensorboard; fails(lambda: esdmon.watch(torch.nn.Linear(64, 64), sinks='tensorboard:x'))",
            "tensorboard",
        ),
        (
            "wandb",
            "import esdmon_wandb; fails(lambda: esdmon.watch(torch.nn.Linear(64, 64), sinks='wandb'))",
            "wandb",
        ),
        *(
            (package, f"fails(lambda: esdmon.watch(torch.nn.Linear(64, 64), sinks='{extra}'))", extra)
            for package, extra in (("mlflow", "mlflow"), ("comet_ml", "comet"))
        ),
        ("lightning", "fails(lambda: __import__('esdmon_lightning'))", "lightning"),
        ("transformers", "fails(lambda: __import__('esdmon_transformers'))", "transformers"),
        (
            "matplotlib",
            "import esdmon.present as p; fails(lambda: p.draw_esd(esdmon.analyze(torch.nn.Linear(64, 64)).layers[0]))",
            "demo",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_the_first_use_says_what_to_install(package: str, script: str, extra: str) -> None:
    """In one sentence, with the pip line."""
    printed = run(script, package)
    assert printed.startswith("MissingExtraError ")
    assert f'python -m pip install "esdmon[{extra}]"' in printed
    assert printed.count("\n") == 1


def test_with_none_of_them_the_core_works(tmp_path: object) -> None:
    """A monitor that writes to the console, the table, a JSONL; `auto` takes what there is."""
    script = f"""
        import os
        os.chdir({str(tmp_path)!r})
        model = torch.nn.Sequential(torch.nn.Linear(64, 64))
        with esdmon.watch(model, every=1) as monitor:
            monitor.step()
        assert monitor.errors == ()
        (folder,) = os.listdir("runs")
        print(os.listdir(f"runs/{{folder}}"))
    """
    assert run(script, *BLOCKED) == "['esdmon.jsonl']\n"


def test_without_matplotlib_tensorboard_has_the_numbers(tmp_path: object) -> None:
    """And no picture."""
    script = f"""
        model = torch.nn.Sequential(torch.nn.Linear(64, 64))
        with esdmon.watch(model, every=1, sinks="tensorboard:{tmp_path}") as monitor:
            monitor.step()
        print(monitor.errors)
    """
    assert run(script, "matplotlib") == "()\n"
