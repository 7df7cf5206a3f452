"""The summary that ends a run, in what a run has written to standard error."""

import re

_SUMMARY = re.compile(
    r"^esdmon: after \d+ steps.*\n(?:esdmon: .*\n)*?esdmon: alerts: .*\n(?:esdmon: look: .*\n)?", re.MULTILINE
)


def without_summary(text: str) -> str:
    """Return the text without summaries."""
    return _SUMMARY.sub("", text)
