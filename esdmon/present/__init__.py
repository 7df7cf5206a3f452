"""Records as something to look at: numbers by tag (`scalars`), figures, colours. For every sink."""

from esdmon.present.colours import coloured as coloured
from esdmon.present.figures import draw_esd as draw_esd
from esdmon.present.figures import prepare as prepare
from esdmon.present.media import Gallery as Gallery
from esdmon.present.media import MediaSchedule as MediaSchedule
