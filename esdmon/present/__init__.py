"""Presentation of records for every sink: numbers by tag (`scalars`), pictures, and the colour of each phase."""

from esdmon.present.colours import coloured as coloured
from esdmon.present.figures import draw_esd as draw_esd
from esdmon.present.figures import prepare_drawing as prepare_drawing
from esdmon.present.media import Media as Media
from esdmon.present.overview import Overview as Overview
