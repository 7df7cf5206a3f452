"""Replace characters that an output cannot encode, such as × on a terminal or in a file of ASCII.

A replacement is as wide as what it stands for where columns of a table depend on it: ±, for which there is only `+-`,
takes the blank behind it too.
"""

import codecs
import sys
import unicodedata
from contextlib import suppress

PLAIN = "esdmon.plain"
"""Name of the error handler, for `errors=` of a stream."""
_PLAIN = {
    "×": "x",
    "…": "~",
    "–": "-",
    "—": "-",
    "−": "-",
    "±": "+-",
    "≤": "<=",
    "≥": ">=",
    "·": "*",
    "→": "->",
    "‖": "||",
    "√": "sqrt",
    "∞": "inf",
    "λ": "lambda",
    "σ": "sigma",
    "α": "alpha",
    "Δ": "Delta",
    "µ": "u",
}
_BLANK_BEHIND = "±"


def encodable(text: str, encoding: str | None) -> str:
    """Return a text with other characters in place of those that an encoding does not have.

    >>> encodable("256 × 64, 2.01 ± 0.15, σ²", "ascii")
    '256 x 64, 2.01 +-0.15, sigma2'
    """
    if text.isascii() or not isinstance(encoding, str):
        return text
    with suppress(LookupError):  # an encoding that Python does not know, in a host's own stream
        return text.encode(encoding, errors=PLAIN).decode(encoding)
    return text


def printed(text: str) -> str:
    """Return a text for `print`: with other characters in place of those that standard output cannot encode."""
    return encodable(text, getattr(sys.stdout, "encoding", None))


def storable(text: str) -> str:
    """Return a text with escape sequences in place of lone surrogates, which UTF-8 cannot encode.

    Python has them in names of files that are not UTF-8, and a layer or a run may be named after a file.
    """
    return text.encode(errors="backslashreplace").decode()


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Return the replacement of the first character that cannot be encoded, and the position behind it."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = error.object[error.start]
    behind = error.start + 1
    if character in _BLANK_BEHIND and error.object[behind : behind + 1] == " ":
        behind += 1
    decomposed = unicodedata.normalize("NFKD", character).encode("ascii", errors="ignore").decode()
    return _PLAIN.get(character) or decomposed or "?", behind


codecs.register_error(PLAIN, _plain)
