"""Serve the tab ESD of TensorBoard.

Everything is read through TensorBoard's data provider, so that remote folders, both back ends and `--logdir_spec` work,
and no file is opened by a request. Names of runs and layers are used as keys only, never as parts of a path.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final, final

from tensorboard import errors, plugin_util
from tensorboard.backend import http_util
from tensorboard.plugins import base_plugin
from werkzeug import wrappers

from esdmon.records import SCHEMA, Record
from esdmon.webpage import assets
from esdmon_tensorboard import charts
from esdmon_tensorboard.stored import Provider, StoredRun
from esdmon_tensorboard.tensors import PLUGIN

_RENDER: Final = """
export async function render() {
  const style = el('link', {rel: 'stylesheet', href: 'app.css'});
  await new Promise(done => { style.onload = style.onerror = done; document.head.append(style); });
  await mount(document.body, httpSource('.'), {poll: 5000});
}
"""
_View = StoredRun | charts.ChartedRun


@final
class EsdTab(base_plugin.TBPlugin):  # type: ignore[misc]  # TensorBoard ships no types
    """The tab: the page, and the data of a run as `esdmon.webpage.contract` describes it."""

    plugin_name = PLUGIN

    def __init__(self, context: base_plugin.TBContext) -> None:
        self._provider = context.data_provider
        self._script = assets.script() + _RENDER
        self._style = assets.style()

    def get_plugin_apps(self) -> Mapping[str, Any]:
        """Return the routes."""
        return {
            "/index.js": _app(lambda _: (self._script, "text/javascript")),
            "/app.css": _app(lambda _: (self._style, "text/css")),
            "/runs": _app(lambda request: _json({"schema": SCHEMA, "runs": self._runs(request)})),
            "/overview": _app(lambda request: _json(self._view(request).overview(request.args.get("after", "")))),
            "/lines": _app(lambda request: _json(self._view(request).lines(request.args.get("layer", "")))),
            "/frames": _app(lambda request: _json(self._view(request).frames(request.args.get("layer", "")))),
        }

    def is_active(self) -> bool:
        """Return False: TensorBoard itself shows the tab if there are tensors of ours, without a search here."""
        return False

    def frontend_metadata(self) -> base_plugin.FrontendMetadata:
        """Return the name of the tab and of its script."""
        return base_plugin.FrontendMetadata(es_module_path="/index.js", tab_name="ESD")

    def _runs(self, request: wrappers.Request) -> list[str]:
        provider = self._provider_for(request)
        return provider.by_start({*provider.stored_runs(), *provider.runs_with_scalars(charts.PREFIX)})

    def _view(self, request: wrappers.Request) -> _View:
        provider, run = self._provider_for(request), request.args.get("run", "")
        if provider.stored_runs(run):
            return StoredRun(provider, run)
        if provider.runs_with_scalars(charts.PREFIX, run):
            return charts.ChartedRun(provider, run)
        raise errors.NotFoundError(f"run {run!r} has no readings of esdmon")

    def _provider_for(self, request: wrappers.Request) -> Provider:
        environ = request.environ
        return Provider(self._provider, plugin_util.context(environ), plugin_util.experiment_id(environ))


def _json(record: Record) -> tuple[str, str]:
    return json.dumps(record, separators=(",", ":"), allow_nan=False), "application/json"


def _app(answer: Callable[[wrappers.Request], tuple[str, str]]) -> Any:
    """Return a WSGI application that responds with the content and type that a function returns."""

    @wrappers.Request.application
    def app(request: wrappers.Request) -> Any:
        content, content_type = answer(request)
        return http_util.Respond(request, content, content_type)

    return app
