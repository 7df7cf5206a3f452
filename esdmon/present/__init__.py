"""Presentation of records: numbers by tag (`scalars`), pictures, columns of tables, a verdict, colours of phases."""

from esdmon.present.colours import coloured as coloured
from esdmon.present.figures import draw_esd as draw_esd
from esdmon.present.figures import prepare_drawing as prepare_drawing
from esdmon.present.media import Media as Media
from esdmon.present.overview import Overview as Overview
