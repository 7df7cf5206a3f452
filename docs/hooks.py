"""Make the parts of the site that are written elsewhere: in docstrings, tables of the code, and other Markdown files.

MkDocs calls the `on_…` functions. Links in the sources are paths in the repository, which GitHub follows as well; here
they become links between pages.
"""

import inspect
import posixpath
import re
import sys
import tomllib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import esdmon.spectrum
from esdmon.alerts.rules.builtin import BUILT_IN_RULES
from esdmon.cli.alerts import persistence, thresholds
from esdmon.records import severity_word
from esdmon.spectrum import Measure, Spectrum, bulk, clauset2009, scales
from esdmon.spectrum.measures import BUILT_IN_MEASURES

ROOT = Path(__file__).parents[1]
PLUGINS = "CONTRIBUTING.md#a-plugin-in-ten-minutes"
PAGES = {
    "README.md": "index.md",
    PLUGINS: "plugins.md",
    "CONTRIBUTING.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "examples/paper/README.md": "paper.md",
}
"""The page of the site for a file of the repository outside docs/."""
EXAMPLES = ("plain_loop.py", "lightning_digits.py", "transformers_text.py", "accelerate_loop.py", "notebook.py")
_LINK = re.compile(r"(\]\()([^)\s]+)(\))")
_HIDDEN = re.compile(r"<!---? (?:invisible|skip).*?-->\n*", re.DOTALL)
_MADE = re.compile(r"<!-- made: (\w+) -->.*?<!-- end -->", re.DOTALL)
_OF_PARTS = {"_of_power_law": clauset2009, "_of_bulk": bulk, "_bulk": bulk, "_of_equalised": scales}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and pictures that do not lie in docs/."""
    for path in (*ROOT.glob("examples/*.png"), *ROOT.glob("examples/paper/*.png"), ROOT / "CITATION.cff"):
        files.append(File.generated(config, _asset(path.relative_to(ROOT).as_posix()), abs_src_path=str(path)))
    contributing = _read("CONTRIBUTING.md")
    begin = contributing.index("## A plugin in ten minutes")
    texts = {
        "README.md": _read("README.md"),
        "CONTRIBUTING.md": contributing[:begin],
        PLUGINS: contributing[begin:].replace("## A plugin in ten minutes", "# Plugins", 1),
        "CHANGELOG.md": _read("CHANGELOG.md"),
        "examples/paper/README.md": _read("examples/paper/README.md"),
    }
    for source, text in texts.items():
        files.append(File.generated(config, PAGES[source], content=_for_the_site(text, source)))
    files.append(File.generated(config, "examples.md", content=_examples()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 -- MkDocs' own
    """Fill in what is made from the code, and turn links into those of the site."""
    if page.file.generated_by:
        return markdown
    markdown = _MADE.sub(lambda match: MADE[match[1]](), markdown)
    return _for_the_site(markdown, f"docs/{page.file.src_uri}")


def _read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def _asset(path: str) -> str:
    return f"files/{path.replace('/', '-')}"


def _for_the_site(text: str, source: str) -> str:
    """Return a page without the set-up of its code blocks, and with links that lead to pages of the site."""
    parts = re.split(r"(```.*?```)", _HIDDEN.sub("", text), flags=re.DOTALL)
    link = partial(_site_link, folder=posixpath.dirname(source))
    return "".join(part if part.startswith("```") else _LINK.sub(link, part) for part in parts)


def _site_link(match: re.Match[str], folder: str) -> str:
    """Return a link to where the site has a file of the repository; links to elsewhere stay."""
    before, target, after = match.groups()
    if re.match(r"[a-z]+:|#", target):
        return match[0]
    path, _, anchor = target.partition("#")
    path = posixpath.normpath(posixpath.join(folder, path))
    anchor = f"#{anchor}" if anchor else ""
    if path + anchor in PAGES:
        path, anchor = PAGES[path + anchor], ""
    elif path in PAGES:
        path = PAGES[path]
    elif path.startswith("docs/"):
        path = path.removeprefix("docs/")
    elif path.endswith((".png", ".cff")):
        path = _asset(path)
    elif path.startswith("examples/"):
        name = posixpath.basename(path).replace(".ipynb", ".py")
        path, anchor = "examples.md", f"#{name.replace('.', '')}" if name in EXAMPLES else ""
    return f"{before}{path}{anchor}{after}"


def _examples() -> str:
    """Return the page of the example scripts."""
    parts = ["# Examples", "Each runs in the tests. In a clone: `python examples/plain_loop.py`."]
    for name in EXAMPLES:
        parts += [f"## {name}", f"```python\n{_read(f'examples/{name}').rstrip()}\n```"]
    return "\n\n".join(parts)


def _versions() -> str:
    """Return the table of lower bounds and of the versions that the tests run with."""
    project = tomllib.loads(_read("pyproject.toml"))["project"]
    extras = project["optional-dependencies"]
    wanted = [
        *project["dependencies"],
        *(
            each
            for name in ("tensorboard", "wandb", "lightning", "transformers", "scan", "notebook")
            for each in extras[name]
        ),
    ]
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)$", _read("constraints.txt"), re.MULTILINE))
    rows = [("Python", project["requires-python"].removeprefix(">="), "3.11")]
    for requirement in wanted:
        name, _, least = requirement.partition(">=")
        rows.append((name, least, pinned.get(name, "the newest")))
    return _table(("", "at least", "tests run with"), rows)


def _measures() -> str:
    """Return the table of all measures."""
    rows = []
    for measure in BUILT_IN_MEASURES:
        definition, unit = _defined()[measure.name]
        example = measure.null(_EXAMPLE) if measure.null and not measure.needs else None
        rows.append(
            (
                f"[`{measure.name}`](#{measure.name})",
                definition,
                unit,
                _null(measure),
                "" if example is None else f"{example:.4g}",
            )
        )
    return _table(("measure", "definition", "unit, range", "for noise", "noise of 512 × 256"), rows)


def _each_measure() -> str:
    """Return a section for each measure: its docstring, and its source."""
    parts = []
    for measure in BUILT_IN_MEASURES:
        definition, unit = _defined()[measure.name]
        parts += [f"### {measure.name}", f"**Definition:** {definition}. **Unit and range:** {unit}."]
        parts += [f"**For noise:** {_null(measure)}."] if measure.null else []
        text = _docstring(measure.compute).removeprefix("Return ")
        parts += [f"{text[0].upper()}{text[1:]}"] if text else []
        parts += [] if "Source: " in text else [f"**Source:** {_reference(_home(measure))}"]
    return "\n\n".join(parts)


def _rules() -> str:
    """Return the table of all alert rules."""
    rows = [
        (
            f"[`{rule.name}`](#{rule.name})",
            rule.page.partition("\n")[0],
            severity_word(rule.severity),
            persistence(rule),
        )
        for rule in BUILT_IN_RULES
    ]
    return _table(("alert", "what it says", "severity", "fires"), rows)


def _each_rule() -> str:
    """Return a section for each alert rule, with all that `esdmon alerts explain` prints."""
    parts = []
    for rule in BUILT_IN_RULES:
        first, _, details = rule.page.partition("\n\n")
        parts += [f"### {rule.name}", f"*{severity_word(rule.severity)}, {persistence(rule)}*", first]
        parts += [f"**What to do:** {rule.advice}", details]
        parts += [f"**Thresholds:** `{thresholds(rule)}`"] if rule.thresholds else []
        parts += [f"**Mutes,** in the same layer: {', '.join(rule.mutes)}"] if rule.mutes else []
        parts += (
            [f"**Mutes,** in all layers at first: {', '.join(rule.mutes_elsewhere)}"] if rule.mutes_elsewhere else []
        )
    return "\n\n".join(parts)


MADE: dict[str, Callable[[], str]] = {
    "versions": _versions,
    "measures": _measures,
    "each_measure": _each_measure,
    "rules": _rules,
    "each_rule": _each_rule,
}

_EXAMPLE = Spectrum.from_eigenvalues([1.0] * 256, shape=(512, 256))
_ANOTHER = Spectrum.from_eigenvalues([1.0] * 64, shape=(256, 64))


def _defined() -> dict[str, tuple[str, str]]:
    """Return definition and unit of each measure, from the table in the docstring of `esdmon.spectrum`."""
    lines = (inspect.getdoc(esdmon.spectrum) or "").splitlines()
    first, _, last = (number for number, line in enumerate(lines) if line.startswith("==="))
    starts = [match.start() for match in re.finditer(r"=+", lines[first])]
    cells = (
        [line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)]
        for line in lines[first + 3 : last]
    )
    return {name: (definition, unit) for name, definition, unit in cells}


def _null(measure: Measure) -> str:
    """Return what a measure is for noise: a number, M, or the first sentence of the docstring of its null."""
    if measure.null is None:
        return ""
    text = _docstring(measure.null).partition("\n\n")[0]
    if text:
        return text.removeprefix("Return ").rstrip(".")
    values = [measure.null(each) for each in (_EXAMPLE, _ANOTHER)]
    return f"{values[0]:g}" if values[0] == values[1] else "M"


def _docstring(function: Callable[..., Any]) -> str:
    """Return the docstring of a function that has one of its own, without its examples."""
    if isinstance(function, partial) or "<locals>" in getattr(function, "__qualname__", ""):
        return ""
    return (inspect.getdoc(function) or "").partition(">>>")[0].strip()


def _home(measure: Measure) -> ModuleType:
    """Return the module that defines what a measure is made of."""
    function: Any = measure.compute
    if isinstance(function, partial):
        function = function.args[0]  # the quantity of the vectors
    maker = function.__qualname__.partition(".")[0]
    parts = (module for name, module in _OF_PARTS.items() if maker.startswith(name))
    return next(parts, sys.modules[function.__module__])


def _reference(module: ModuleType) -> str:
    """Return the reference in the docstring of a module, as one paragraph; its first sentence where it names none."""
    text = " ".join((inspect.getdoc(module) or "").split())
    found = re.search(r"(?:References?: |The source is )(.+?\(https?://[^)]+\))", text)
    return found[1] + "." if found else f"ours: `{module.__name__}`."


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
