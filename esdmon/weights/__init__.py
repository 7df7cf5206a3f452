"""The torch floor: a model in, named matrices and their spectra out."""

from esdmon.weights.discovery import Watched as Watched
from esdmon.weights.discovery import discover as discover
from esdmon.weights.drift import Drift as Drift
from esdmon.weights.eigen import check_precision as check_precision
from esdmon.weights.eigen import check_readable as check_readable
from esdmon.weights.eigen import read_spectrum as read_spectrum
from esdmon.weights.extract import Extractor as Extractor
from esdmon.weights.extract import extract as extract
from esdmon.weights.matrix import Matrix as Matrix
from esdmon.weights.matrix import UnreadableError as UnreadableError
