"""Draw one picture of a run: the phase of each layer over the steps, and the alerts.

It is drawn with Pillow, which TensorBoard installs. The letters are large, since trackers show the picture at half its
size.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from esdmon.errors import MissingExtraError, masked
from esdmon.present.scalars import kinds
from esdmon.records import Alert, Report, severity_word
from esdmon.records.alert import not_at
from esdmon.records.colours import PHASE_HEX, SEVERITY_HEX, STATUS_HEX
from esdmon.records.table import shorten_all
from esdmon.records.text import count
from esdmon.records.timeline import Episode, Stage, Timeline
from esdmon.spectrum import Phase

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

WIDTH, HEIGHT = 480, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 132, 8, 78, 86  # margins of the map
_NAME_WIDTH: Final = _LEFT - 13  # pixels of the names beside the map
_SHORTEST_NAME: Final = 6  # characters
_TEXT, _BACKGROUND, _UNREAD = "#222222", "#ffffff", "#eef0f2"
_SINGLE_ROWS: Final = 14
"""Largest number of layers that have rows with their own names; more layers are grouped by kind. Our choice."""
_ENDED: Final = 5  # number of ended alerts in the text; our choice
_LINE = 20  # pixels from one line of text to the next
_LAST_READING = 0.02  # share of the width for the last reading
_REDRAWN_AFTER = 50
"""The picture is drawn again when the number of readings has grown by a fiftieth: about 300 times in 10 000 readings.
Our choice."""
_STATES: Final[Mapping[str, str]] = {
    **{phase.value: colour for phase, colour in PHASE_HEX.items()},
    **STATUS_HEX,
}
"""The colour of each phase, and of each status without one."""


@final
class Overview:
    """The picture of one sink, with the schedule of its drawing."""

    def __init__(self) -> None:
        self._can_draw = _can_draw()
        self.timeline = Timeline()
        self._readings = self._drawn_at = 0
        self._is_due = False

    @property
    def is_due(self) -> bool:
        """Return True if there is something new to draw, and Pillow to draw with."""
        return self._is_due and self._can_draw and self.timeline.last is not None

    def take(self, report: Report) -> None:
        """Add a report."""
        self.timeline.take(report)
        self._readings += 1
        self._is_due |= self._readings - self._drawn_at >= max(1, self._readings // _REDRAWN_AFTER)

    def alert(self, alert: Alert) -> None:
        """Add an alert that has begun, grown or ended."""
        self.timeline.alert(alert)
        self._is_due = True

    def rewind(self, step: int) -> None:
        """Drop all data after a step."""
        self.timeline.rewind(step)
        self._is_due = False

    def resume(self, course: Timeline) -> None:
        """Continue the picture of a run that another process may have drawn."""
        self.timeline = course

    def make_due(self) -> None:
        """Make the picture due, if the last report is not in it yet."""
        self._is_due |= self._drawn_at < self._readings

    def draw(self) -> NDArray[np.uint8]:
        """Draw the picture; it is due again when there is new data."""
        self._is_due, self._drawn_at = False, self._readings
        return draw_overview(self.timeline)


class _Row(NamedTuple):
    """The position of a layer in the picture."""

    name: str
    top: float
    bottom: float


def draw_overview(timeline: Timeline) -> NDArray[np.uint8]:
    """Draw a row for each layer, coloured by its phase from left to right, with alerts, a legend and the steps.

    Returns:
        RGB values of shape (360, 480, 3).

    Raises:
        MissingExtraError: without Pillow.
    """
    try:
        from PIL import Image, ImageDraw  # noqa: PLC0415 -- optional
    except ImportError as error:
        raise MissingExtraError("an overview picture", "pillow", "tensorboard") from error
    picture = Image.new("RGB", (WIDTH, HEIGHT), _BACKGROUND)
    painter = _Painter(ImageDraw.Draw(picture), timeline)
    painter.draw()
    return np.asarray(picture)


@final
class _Painter:
    """One picture that is being drawn."""

    def __init__(self, pen: "ImageDraw", timeline: Timeline) -> None:
        from PIL import ImageFont  # noqa: PLC0415 -- optional

        font = ImageFont.load_default(size=17)
        if not isinstance(font, ImageFont.FreeTypeFont):
            raise MissingExtraError("an overview picture", "pillow with FreeType", "tensorboard")
        self._font = font
        self._pen = pen
        self._timeline = timeline
        self._first = min((stages[0].step for stages in timeline.stages.values() if stages), default=0)
        self._last = self._first if timeline.last is None else max(timeline.last.step, self._first)
        self._step_width = (1 - _LAST_READING) * (WIDTH - _LEFT - _RIGHT) / max(self._last - self._first, 1)

    def draw(self) -> None:
        """Draw all parts."""
        self._write_headline()
        rows, labels = self._place()
        for row in rows:
            self._draw_row(row)
        for label, middle in labels:
            self._write(_LEFT - 9, middle - _LINE / 2, label, width=_NAME_WIDTH, at="right")
        by_name = {row.name: row for row in rows}
        for episode in self._timeline.episodes:
            self._mark(episode, by_name)
        self._write_steps()
        self._write_legend()

    def _write_headline(self) -> None:
        firing = self._timeline.firing
        colour = _colour_of(firing[0]) if firing else _TEXT
        self._write(8, 2, f"{_how_many_fire(firing)} at step {self._last}", colour=colour, bold=True)
        for line, episode in enumerate(firing[:2], start=1):
            text = self._alert_line(episode.alert, WIDTH - 16)
            self._write(8, 2 + line * _LINE, text, width=WIDTH - 16, colour=_colour_of(episode))

    def _alert_line(self, alert: Alert, width: float) -> str:
        """Return rule, layers and step of an alert; to fit, the name of a single layer is shortened, not the others."""
        layers = alert.layers or ((alert.layer,) if alert.layer else ())
        where = f" in {layers[0]}" if len(layers) == 1 else f" in {len(layers)} layers" if layers else ""
        since = f" since step {alert.since}"
        longer = since + not_at(alert.since, alert.after)
        if self._length(f"{alert.rule}{where}{longer}") <= width:
            since = longer
        if len(layers) == 1:
            where = f" in {self._fitted(layers[0], width - self._length(f'{alert.rule} in {since}'))}"
        return f"{alert.rule}{where}{since}"

    def _place(self) -> tuple[list[_Row], list[tuple[str, float]]]:
        """Return the row of each layer, and the labels with their vertical positions."""
        names = list(self._timeline.stages)
        height = HEIGHT - _BOTTOM - _TOP
        if len(names) <= _SINGLE_ROWS:
            each = min(height / max(len(names), 1), 48.0)
            single = [_Row(name, _TOP + k * each, _TOP + (k + 1) * each - 1) for k, name in enumerate(names)]
            middles = [(row.top + row.bottom) / 2 for row in single]
            return single, list(zip(self._apart(names), middles, strict=True))
        bands = kinds(names)
        gap = min(3.0, 0.25 * height / len(bands))
        each = (height - gap * (len(bands) - 1)) / len(names)
        rows: list[_Row] = []
        labels: list[tuple[str, float]] = []
        top = float(_TOP)
        for kind, members in bands.items():
            rows += [_Row(name, top + k * each, top + (k + 1) * each) for k, name in enumerate(members)]
            middle, top = top + len(members) * each / 2, top + len(members) * each + gap
            if not labels or middle - labels[-1][1] >= _LINE:
                labels.append((kind, middle))
        return rows, labels

    def _apart(self, names: Sequence[str]) -> Sequence[str]:
        """Return names shortened to fit beside the map; names with equal ends keep the parts in which they differ."""
        fitted = [self._fitted(name, _NAME_WIDTH) for name in names]
        if len(set(fitted)) == len(names):
            return fitted
        for length in range(max(map(len, names)), _SHORTEST_NAME, -1):
            short = shorten_all([masked(name) for name in names], length)
            if all(self._font.getlength(name) <= _NAME_WIDTH for name in short):
                return short
        return fitted

    def _draw_row(self, row: _Row) -> None:
        stages = self._timeline.stages[row.name]
        self._pen.rectangle((_LEFT, row.top, WIDTH - _RIGHT, _under(row)), fill=_UNREAD)
        for k, stage in enumerate(stages):
            end = self._x(stages[k + 1].step) if k + 1 < len(stages) else WIDTH - _RIGHT
            box = (self._x(stage.step), row.top, max(end, self._x(stage.step) + 1), _under(row))
            self._pen.rectangle(box, fill=_STATES.get(stage.state, _UNREAD))

    def _mark(self, episode: Episode, rows: Mapping[str, _Row]) -> None:
        """Draw a triangle above the map where an alert began, and lines in its rows, if they are high enough."""
        x, colour = self._x(episode.began), _colour_of(episode)
        self._pen.polygon([(x, _TOP - 2), (x - 5, _TOP - 12), (x + 5, _TOP - 12)], fill=colour)
        if episode.alert.severity == "info":
            return
        end = WIDTH - _RIGHT if episode.ended is None else self._x(episode.ended)
        for name in episode.alert.layers:
            if name in rows and rows[name].bottom - rows[name].top >= 8:
                middle = (rows[name].top + rows[name].bottom) / 2
                self._pen.line((x, middle, max(end, x + 2), middle), fill="#ffffff", width=6)
                self._pen.line((x, middle, max(end, x + 2), middle), fill="#111111", width=2)
            elif name in rows and episode.ended is None:
                middle = (rows[name].top + rows[name].bottom) / 2
                self._pen.rectangle((_LEFT - 7, middle - 3, _LEFT - 2, middle + 3), fill=colour)
                self._draw_row(_Row(name, middle - 2, middle + 2))  # a row of one pixel would be invisible

    def _write_steps(self) -> None:
        bottom = HEIGHT - _BOTTOM + 2
        self._write(_LEFT, bottom, f"step {self._first}")
        self._write(WIDTH - _RIGHT, bottom, str(self._last), at="right")

    def _write_legend(self) -> None:
        used = {stage.state for stages in self._timeline.stages.values() for stage in stages}
        x, y = 8.0, HEIGHT - _BOTTOM + 2.0 + _LINE + 4
        for state in (state for state in _STATES if state in used):
            width = 20 + self._font.getlength(state) + 12
            if x + width > WIDTH:
                x, y = 8.0, y + _LINE
            self._pen.rectangle((x, y + 4, x + 13, y + 17), fill=_STATES[state])
            self._write(x + 18, y, state)
            x += width

    def _x(self, step: int) -> float:
        return _LEFT + max(step - self._first, 0) * self._step_width

    def _write(
        self,
        x: float,
        y: float,
        text: str,
        *,
        width: float = WIDTH,
        at: str = "left",
        colour: str = _TEXT,
        bold: bool = False,
    ) -> None:
        text = self._fitted(text, width)
        left = x - self._font.getlength(text) if at == "right" else x
        self._pen.text((left, y), text, fill=colour, font=self._font, stroke_width=0.4 if bold else 0)

    def _length(self, text: str) -> float:
        return self._font.getlength(masked(text))

    def _fitted(self, text: str, width: float) -> str:
        """Return a text that fits, with `…` in place of its beginning, since names differ at their ends."""
        text = masked(text)
        if self._font.getlength(text) <= width:
            return text
        start = bisect_right(range(len(text)), -width, key=lambda k: -self._font.getlength(f"…{text[k:]}"))
        return f"…{text[start:]}"


def _under(row: _Row) -> float:
    return max(row.bottom - 1, row.top)


def _how_many_fire(firing: Sequence[Episode]) -> str:
    notices = sum(episode.alert.severity == "info" for episode in firing)
    serious = len(firing) - notices
    alerts = f"{count(serious, 'alert')} {'fires' if serious == 1 else 'fire'}" if serious else "No alert fires"
    return f"{alerts}, {count(notices, 'notice')}" if notices else alerts


def _colour_of(episode: Episode) -> str:
    return SEVERITY_HEX[episode.alert.severity]


def _can_draw() -> bool:
    """Return whether pictures can be drawn; the check also imports Pillow before training."""
    timeline = Timeline()
    timeline.stages["fc"] = [Stage(0, Phase.RANDOM_LIKE.value)]
    try:
        draw_overview(timeline)
    except Exception:  # noqa: BLE001 -- Pillow or its fonts are missing: no pictures
        return False
    return True


def alert_text(timeline: Timeline) -> str:
    """Return a text in Markdown on the alerts that fire now, the worst first, and the last five that ended."""
    firing = timeline.firing
    lines = [f"**{_how_many_fire(firing)} now**", ""]
    for each in firing:
        lines.append(
            f"- **{severity_word(each.alert.severity)}**, since step {each.alert.since}: {_plain(each.alert.message)}"
        )
        lines += [f"    - {_plain(line)}" for line in each.alert.layer_lines]
    over = [episode for episode in timeline.episodes if episode.ended is not None][-_ENDED:][::-1]
    if over:
        lines += ["", "Ended:", ""]
        lines += [f"- steps {each.began} to {each.ended}: {_plain(each.alert.message)}" for each in over]
    return "\n".join(lines)


def _plain(message: str) -> str:
    """Return a message with characters escaped that Markdown would format, such as `_` or `*` in a name."""
    return "".join(f"\\{letter}" if letter in r"\`*_{}[]<>#|" else letter for letter in message)
