"""How TensorBoard comes to the tab."""

import subprocess
import sys
import tomllib
from argparse import Namespace
from pathlib import Path

import pytest

from esdmon_tensorboard.loader import SAMPLES, EsdLoader

ROOT = Path(__file__).parents[2]


def test_the_entry_point_leads_to_the_loader() -> None:
    """By the group that TensorBoard looks at."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["tensorboard_plugins"] == {"esdmon": f"{EsdLoader.__module__}:{EsdLoader.__name__}"}


def run_fresh(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_tab_needs_no_torch() -> None:
    """TensorBoard may run where there is none, and should start fast."""
    code = """
import sys
from tensorboard.plugins.base_plugin import TBContext
from esdmon_tensorboard.loader import EsdLoader
assert EsdLoader().load(TBContext()) is not None
print(*{name.partition(".")[0] for name in sys.modules} & {"torch", "scipy", "matplotlib", "wandb"})
"""
    assert run_fresh(code).strip() == ""


@pytest.mark.parametrize(
    "broken", ["numpy", "esdmon.webpage.contract", "esdmon.present", "esdmon_tensorboard.tab", "werkzeug"]
)
def test_where_something_is_broken_there_is_no_tab(broken: str) -> None:
    """And TensorBoard goes on: it imports the loader unguarded."""
    code = f"""
import sys
from tensorboard.plugins import base_plugin
for name in [name for name in sys.modules if (name + ".").startswith("{broken}.")]:
    del sys.modules[name]
sys.modules["{broken}"] = None
from esdmon_tensorboard.loader import EsdLoader
print(EsdLoader().load(base_plugin.TBContext()))
"""
    assert run_fresh(code).strip() == "None"


def test_the_users_number_of_samples_is_kept() -> None:
    """Ours holds where nothing was chosen."""
    for given, expected in ((None, {"esdmon": SAMPLES}), ({"esdmon": 5, "images": 1}, {"esdmon": 5, "images": 1})):
        flags = Namespace(samples_per_plugin=given)
        EsdLoader().fix_flags(flags)
        assert flags.samples_per_plugin == expected
