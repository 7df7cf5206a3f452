"""`esdmon plugins`: list the plugins that were found."""

import json
import textwrap
from dataclasses import asdict

from esdmon.plugins import Plugins

_WIDTH = 80


def show(*, as_json: bool) -> int:
    """Print all plugins with version and hooks, or the reason why one is not used.

    Returns:
        Exit status: 1 if a plugin could not be used (a disabled one does not count), else 0.
    """
    listed = Plugins().listed
    if as_json:
        for each in listed:
            print(json.dumps(asdict(each), ensure_ascii=False))
    else:
        for each in listed:
            print(" ".join(filter(None, (each.name, f"({each.version})" if each.version else "", each.source))))
            text = f"not used: {each.fault}" if each.fault else ", ".join(each.hooks)
            print(textwrap.fill(text, _WIDTH, initial_indent="    ", subsequent_indent="    "))
    return int(any(each.is_broken for each in listed))
