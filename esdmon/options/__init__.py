"""The options of `watch()`: validated once, and resolved to the parts of a monitor."""

from esdmon.options.measures import choose_measures as choose_measures
from esdmon.options.watch_options import WatchKeywords as WatchKeywords
from esdmon.options.watch_options import WatchOptions as WatchOptions
from esdmon.options.watch_options import shows_options as shows_options
