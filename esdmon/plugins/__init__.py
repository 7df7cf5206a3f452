"""Define hooks (`hookspecs`), load plugins and call them in isolation (`registry`), collect their parts (`manager`)."""

from esdmon.plugins.hookspecs import hookimpl as hookimpl
from esdmon.plugins.hookspecs import hookspec as hookspec
from esdmon.plugins.manager import Plugins as Plugins
