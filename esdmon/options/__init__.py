"""The options of `watch()`: validated once, and resolved to the parts of a monitor."""

from esdmon.options.measures import choose_measures as choose_measures
from esdmon.options.unknown import unknown_option as unknown_option
from esdmon.options.watch_options import OPTIONS as OPTIONS
from esdmon.options.watch_options import WatchKeywords as WatchKeywords
from esdmon.options.watch_options import WatchOptions as WatchOptions
from esdmon.options.watch_options import shows_named as shows_named
from esdmon.options.watch_options import shows_options as shows_options
