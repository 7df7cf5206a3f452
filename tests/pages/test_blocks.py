"""Every block of code in README, CONTRIBUTING and docs runs as it stands, in the order of the page.

What a block needs and a reader has, a model or a loader, is made by an invisible block before it: a comment in the
page, with functions of `tests/pages/prepared.py`. A block that needs a package which the extra `test` does not
install has a comment before it, and is left out where the package is missing:

    <!--- skip: next if(missing("mlflow"), reason="needs mlflow") -->
"""

import re
import shutil
import tomllib
from contextlib import suppress
from pathlib import Path
from unittest import SkipTest

import pytest
from matplotlib import pyplot as plt
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

from esdmon.alerts.config import load_config
from tests.alerts.histories import RULES
from tests.pages import prepared, shell
from tests.pages.prepared import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def check_toml(example: Example) -> None:
    """A file of rules is one; any other is TOML."""
    if "[rules." in example.parsed:
        path = Path("given.toml")
        path.write_text(example.parsed, encoding="utf-8")
        assert load_config(str(path), RULES).rules
    else:
        assert tomllib.loads(example.parsed)


SYBIL = Sybil(
    [PythonCodeBlockParser(), CodeBlockParser("sh", shell.check), CodeBlockParser("toml", check_toml), SkipParser()]
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("prepared")
    prepared.fill(made)
    return made


@pytest.mark.filterwarnings("ignore")  # the hosts warn of themselves and of each other
@every_page
def test_the_blocks_run(
    page: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLACK_WEBHOOK", "http://127.0.0.1:9/none")
    monkeypatch.setattr(plt, "show", lambda: None)
    document = SYBIL.parse(page)
    document.namespace.update(prepared.NAMES, __name__="page")
    for example in document:
        with suppress(SkipTest):  # a block before which `missing` has said that its package is not installed
            example.evaluate()
    plt.close("all")
    assert [text for text in caplog.messages if "failed" in text] == []  # what fails inside a watch raises nothing


@every_page
def test_a_block_is_left_out_only_for_a_package(page: Path) -> None:
    """And for one that the extra `test` does not install."""
    skips = re.findall(r"<!--- ?skip: (.*?) ?-->", page.read_text(encoding="utf-8"))
    for skip in skips:
        package = re.fullmatch(r'next if\(missing\("(\w+)"\), reason=".+"\)', skip)
        assert package is not None, skip
        test = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]["test"]
        assert not [each for each in test if each.startswith(package[1])]


def test_a_block_is_left_out_where_its_package_is_missing(tmp_path: Path) -> None:
    """And not where it is there."""
    page = tmp_path / "page.md"
    for package, error in (("no_such_package", SkipTest), ("torch", ZeroDivisionError)):
        skip = f'<!--- skip: next if(missing("{package}"), reason="needs it") -->'
        page.write_text(f"{skip}\n\n```python\n1 / 0\n```\n", encoding="utf-8")
        document = SYBIL.parse(page)
        document.namespace.update(prepared.NAMES)
        skip_parser, block = document
        skip_parser.evaluate()
        with pytest.raises(error, match=r"needs it|division"):
            block.evaluate()


@every_page
def test_blocks_are_of_languages_that_are_checked(page: Path) -> None:
    """One without a language shows what a command prints."""
    fences = re.findall(r"^```(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(fences) <= {"", "python", "sh", "toml"}
    assert not [line for line in fences[1::2] if line], "a block that does not end"


@pytest.mark.parametrize(
    ("block", "error"),
    [
        ("```python\nno_such()\n```", "no_such"),
        ("```sh\nesdmon scan no-such-file\n```", "no-such-file"),
        ("```sh\npython -m tests.benchmarks.no_such\n```", "no_such"),
        ("```sh\npython -m esdmon.selftest --no-such\n```", "no-such"),
        ('```sh\npython -m pip install "esdmon[no-such]"\n```', "no-such"),
        ("```sh\nno-such-tool\n```", "no-such-tool"),
        ("```toml\n[rules.no_such]\nfor = 3\n```", "no_such"),
    ],
)
def test_the_check_can_fail(block: str, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"
    page.write_text(block, encoding="utf-8")
    (example,) = SYBIL.parse(page)
    with pytest.raises((NameError, AssertionError, ValueError), match=error):
        example.evaluate()
