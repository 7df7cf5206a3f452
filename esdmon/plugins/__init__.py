"""Plugins: the hooks (`hookspecs`), loading and isolated calls (`registry`), what a monitor gets (`manager`)."""

from esdmon.plugins.hookspecs import hookimpl as hookimpl
from esdmon.plugins.hookspecs import hookspec as hookspec
from esdmon.plugins.manager import Plugins as Plugins
