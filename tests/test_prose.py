"""How the project speaks: the words that it does not use, the form of docstrings and messages, the list of messages.

`messages.txt` lists every message that a user can meet: log lines, notices and errors. A message that is new or changed
fails here until `python -m tests.test_prose` has written the list again, so that its wording is looked at.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MESSAGES = ROOT / "tests" / "data" / "messages.txt"
SOURCES = sorted(
    path
    for folder in ("esdmon", "integrations", "examples")
    for path in (ROOT / folder).rglob("*.py")
    if "build" not in path.parts
)
TESTS = sorted(path for path in (ROOT / "tests").rglob("*.py") if path.name != "test_prose.py")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
ODD = re.compile(
    r"\b(told|tells?|telling|anew|likewise|as it is\b(?! (read|used|drawn))|(?<!soon )as they are|"
    r"(?<!there )(is|are) no (?!more|longer|better)|a stranger'?s?|whose turn|takes? its turn|comes? to nothing|"
    r"word from|(is|are) (asked|said))\b",
    re.IGNORECASE,
)
LOGGED = {"debug", "info", "warning", "error", "critical", "log"}
WARNINGS = {"warning", "error", "critical"}
NOT_A_VERB = re.compile(
    r"(Whether|What|Which|How|Where|When|Why|The|A|An|Those|That|This|These|It|Its|Each|All|Likewise|As|Not)\b"
)


def source_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def docstrings(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    """Those of modules, classes and functions, and the texts under fields and constants."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            for statement in node.body:
                match statement:
                    case ast.Expr(value=ast.Constant(value=str(text))):
                        yield (node if statement is node.body[0] else statement), text


def comments(source: str) -> Iterator[str]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


def text_of(node: ast.expr | None) -> str:
    """A message as it stands in the source: its fields as `{…}`; empty for anything else than a text."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return "".join(text_of(value) or "{…}" for value in values)
        case ast.FormattedValue():
            return "{…}"
        case ast.BinOp(left=left, right=right, op=ast.Add()):
            return text_of(left) + text_of(right)
    return ""


def messages(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Each message with its kind: `warning`, `notice`, `InputError`, …"""
    assigned = sorted(
        (node.lineno, target.id, text_of(node.value))
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    )

    def said(node: ast.expr) -> str:
        """Return the text, or the last that was assigned to the name above the line."""
        names = [node.id] if isinstance(node, ast.Name) else []
        above = [text for line, name, text in assigned if name in names and line < node.lineno]
        return text_of(node) or (above[-1] if above else "")

    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="_log"), attr=kind), args=[*arguments]) if (
                kind in LOGGED
            ):
                found = arguments[1] if kind == "log" else arguments[0]
                yield kind, said(found)
            case ast.Call(func=ast.Name(id="notice"), args=[text]):
                yield "notice", said(text)
            case ast.Call(func=ast.Attribute(attr="_warn_once"), args=[text]):
                yield "warning", f"esdmon: {said(text)}"
            case ast.Raise(exc=ast.Call(func=ast.Name(id=error), args=[text, *_])) if not error.endswith("Error"):
                yield error, said(text)
            case ast.Call(func=ast.Name(id=error), args=[text, *_]) if error.endswith("Error"):
                yield error, said(text)


def all_messages() -> list[str]:
    lines = []
    for path in SOURCES:
        if path.parts[len(ROOT.parts)] != "examples":
            for kind, text in messages(ast.parse(source_of(path))):
                if text:
                    lines.append(f"{path.relative_to(ROOT).as_posix()}: {kind}: {text}")
    return lines


@pytest.mark.parametrize("path", [*SOURCES, *TESTS, *PAGES], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_odd_words_are_not_used(path: Path) -> None:
    """In docstrings, comments, messages and pages."""
    source = source_of(path)
    if path.suffix == ".md":
        texts = re.sub(r"```.*?```", "", source, flags=re.DOTALL).splitlines()
    else:
        tree = ast.parse(source)
        texts = [text for _, text in docstrings(tree)] + list(comments(source))
        texts += [text for _, text in messages(tree)] if path in SOURCES else []
    found = [
        match.group(0) + ": …" + text[max(0, match.start() - 40) : match.end() + 20]
        for text in texts
        for match in ODD.finditer(re.sub("`[^`]*`", "`…`", text))
    ]
    assert found == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_docstring_of_a_function_begins_with_a_verb(path: Path) -> None:
    """An imperative, as in `Return the names.`; ruff's D401 looks at its form."""
    wrong = [
        f"{node.name}: {text.strip().splitlines()[0]}"
        for node, text in docstrings(ast.parse(source_of(path)))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and NOT_A_VERB.match(text.strip())
        and not (path.parent.name == "rules" and not node.name.startswith("_"))  # its page, for `esdmon alerts explain`
    ]
    assert wrong == []


def test_the_list_of_messages_is_up_to_date() -> None:
    """Read a message that is new as a user would who meets it at night; then `python -m tests.test_prose`."""
    assert all_messages() == MESSAGES.read_text(encoding="utf-8").splitlines()


def test_a_warning_says_what_happened_and_what_follows() -> None:
    """With more than one clause: the consequence or the remedy. A text that is passed on is listed where it is made."""
    warnings = [text for _, kind, text in (line.split(": ", 2) for line in all_messages()) if kind in WARNINGS]
    own = [text for text in warnings if text.removeprefix("esdmon: ").strip("%s. ")]
    assert [text for text in own if not re.match(r"esdmon: .*[:;.,] ", text)] == []


def test_an_error_names_what_was_given_and_the_remedy() -> None:
    """The value or the option, and more than one clause."""
    lines = [line.partition(": InputError: ")[2] for line in all_messages()]
    assert [line for line in lines if line and not re.search(r"{…}|[:;.,?] ", line)] == []


@pytest.mark.parametrize("text", ["It is told once.", "Read anew.", "x is no rule", "They are taken as they are."])
def test_the_check_can_fail(text: str) -> None:
    """Each of the odd words is found."""
    assert ODD.search(text)


if __name__ == "__main__":
    MESSAGES.write_text("\n".join(all_messages()) + "\n", encoding="utf-8")
