"""Load the tab ESD into TensorBoard, by the entry-point group `tensorboard_plugins`.

TensorBoard imports this module unguarded when it starts, and does not start if that raises. So this module imports only
modules that TensorBoard itself has loaded by then.
"""

from __future__ import annotations

import logging
from typing import Any, final

from tensorboard.plugins import base_plugin

SAMPLES = 2000
"""Number of values that TensorBoard keeps of each tag of ours; its default for plugins is 10."""
_log = logging.getLogger("esdmon")


@final
class EsdLoader(base_plugin.TBLoader):  # type: ignore[misc]  # TensorBoard ships no types
    """Loads the tab, or no tab if a part of it cannot be imported."""

    def fix_flags(self, flags: Any) -> None:
        """Raise the number of our values that TensorBoard keeps, unless the user has set it."""
        flags.samples_per_plugin = {"esdmon": SAMPLES} | (flags.samples_per_plugin or {})

    def load(self, context: base_plugin.TBContext) -> base_plugin.TBPlugin | None:
        """Return the tab; None if it cannot be created, and TensorBoard then starts without it."""
        try:
            from esdmon_tensorboard.tab import EsdTab  # noqa: PLC0415 -- may fail

            return EsdTab(context)
        except Exception as error:  # noqa: BLE001 -- TensorBoard must start after any error
            _log.warning(
                "esdmon: TensorBoard has no tab ESD, since loading it failed (%s: %s). Reinstall esdmon in the "
                "environment of TensorBoard.",
                type(error).__name__,
                error,
            )
            return None
