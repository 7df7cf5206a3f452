"""Write pieces of HTML for notebooks.

Styles are inline, since viewers of notebooks drop style sheets. Only the colours of phases and severities are set; all
other colours are inherited, so that the text is legible on dark and on light pages. If styles are dropped too, as on
GitHub, no information is lost, since each colour stands beside its name.
"""

from collections.abc import Collection, Iterable, Sequence
from html import escape


class Markup(str):
    """Text that is HTML already, and is not escaped again."""

    __slots__ = ()


def page(*parts: str) -> str:
    """Return parts of a page, one below the other; those that are not `Markup` are escaped and become paragraphs."""
    return "\n".join(part if isinstance(part, Markup) else paragraph(part) for part in parts if part)


def paragraph(*parts: str) -> Markup:
    """Return a paragraph of parts with blanks between them."""
    return Markup(f'<div style="margin: .3em 0">{" ".join(map(_escaped, parts))}</div>')


def strong(text: str) -> Markup:
    """Return an emphasised text."""
    return Markup(f"<b>{escape(text)}</b>")


def faint(text: str) -> Markup:
    """Return a text in a faint colour."""
    return Markup(f'<span style="opacity: .6">{escape(text)}</span>')


def badge(text: str, colour: str) -> Markup:
    """Return a text with a coloured bar before it, such as the name of a phase."""
    return Markup(f'<span style="border-left: .7em solid {colour}; padding-left: .4em">{escape(text)}</span>')


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, left: Collection[int] = (0,)) -> Markup:
    """Return a table that scrolls if it is high.

    Args:
        header: a title for each column.
        rows: a cell for each column.
        left: numbers of the columns that are aligned to the left; the others are aligned to the right.
    """

    def line(tag: str, cells: Sequence[str]) -> str:
        places = ("left" if column in left else "right" for column in range(len(cells)))
        styled = (
            f'<{tag} style="text-align: {place}; white-space: nowrap; padding: .1em .8em">{_escaped(cell)}</{tag}>'
            for place, cell in zip(places, cells, strict=True)
        )
        return f"<tr>{''.join(styled)}</tr>"

    body = "\n".join(line("td", row) for row in rows)
    return Markup(
        '<div style="max-height: 32em; overflow: auto"><table>\n'
        f"<thead>{line('th', header)}</thead>\n<tbody>{body}</tbody>\n</table></div>"
    )


def folded(title: str, content: Markup) -> Markup:
    """Return a content that is hidden until its title is clicked."""
    return Markup(f"<details><summary>{escape(title)}</summary>{content}</details>")


def _escaped(text: str) -> str:
    return text if isinstance(text, Markup) else escape(text)
