"""Load the tab ESD into TensorBoard, by the entry-point group `tensorboard_plugins`.

TensorBoard imports this module unguarded when it starts, and does not start where that raises. So nothing is imported
here but what TensorBoard itself has loaded by then.
"""

from __future__ import annotations

import logging
from typing import Any, final

from tensorboard.plugins import base_plugin

SAMPLES = 2000
"""Values that TensorBoard keeps of each tag of ours; its default for plugins is 10."""
_log = logging.getLogger("esdmon")


@final
class EsdLoader(base_plugin.TBLoader):  # type: ignore[misc]  # TensorBoard ships no types
    """Load the tab, or no tab where something of it cannot be imported."""

    def fix_flags(self, flags: Any) -> None:
        """Keep more of our values, unless the user has chosen how many."""
        flags.samples_per_plugin = {"esdmon": SAMPLES} | (flags.samples_per_plugin or {})

    def load(self, context: base_plugin.TBContext) -> base_plugin.TBPlugin | None:
        """Return the tab; None if it cannot be made, and TensorBoard then goes on without it."""
        try:
            from esdmon_tensorboard.tab import EsdTab  # noqa: PLC0415 -- may fail

            return EsdTab(context)
        except Exception as error:  # noqa: BLE001 -- whatever it is, TensorBoard must start
            _log.warning(
                "esdmon: TensorBoard has no tab ESD, since loading it failed (%s: %s). Reinstall esdmon in the "
                "environment of TensorBoard.",
                type(error).__name__,
                error,
            )
            return None
