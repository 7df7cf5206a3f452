"""Every link between the files of the repository leads somewhere; those of the site are checked when it is built."""

import re
import tomllib
from pathlib import Path

import pytest

from tests.pages.prepared import ROOT
from tests.pages.test_blocks import PAGES

LINK = re.compile(r"\]\(([^)\s]+)\)")
MADE = ("rules.md#", "measures.md#")
"""Sections that are made from the code when the site is built."""
OTHERS = [ROOT / "examples" / "paper" / "README.md", ROOT / "CHANGELOG.md"]


def anchors(path: Path) -> set[str]:
    """Return those of a Markdown file, as GitHub and the site make them."""
    heads = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in LINK.findall(text):
        if not re.match(r"https?:", target):
            path, _, anchor = target.partition("#")
            place = (page.parent / path).resolve() if path else page
            assert place.exists(), target
            if anchor and not target.startswith(MADE):
                assert anchor in anchors(place), target


def test_the_readme_is_short_and_has_both_commands() -> None:
    """1 000 to 1 400 words; the commands are those that CI and others run, word for word."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert 1000 <= len(readme.split()) <= 1400
    assert '\npython -m pip install -c constraints.txt -e ".[test]" && python -m pytest\n' in readme
    assert '\npython -m pip install -c constraints.txt -e ".[demo]" && esdmon demo\n' in readme


def test_the_numbers_of_rules_in_the_readme() -> None:
    """As many as there are."""
    from tests.alerts.histories import RULES

    assert len(RULES) == 17
    assert "Seventeen rules" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_citation_has_the_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
