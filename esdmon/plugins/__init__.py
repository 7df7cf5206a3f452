"""The extension surface: hook specifications, and a manager that keeps a bad plugin from hurting the others."""

from esdmon.plugins.hookspecs import hookimpl as hookimpl
from esdmon.plugins.hookspecs import hookspec as hookspec
from esdmon.plugins.manager import Plugins as Plugins
