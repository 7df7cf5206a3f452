"""Find the matrices of a model or checkpoint, and compute their spectra."""

from esdmon.weights.checkpoint import open_checkpoint as open_checkpoint
from esdmon.weights.device.cost import nominal_seconds as nominal_seconds
from esdmon.weights.device.eigen import read_spectrum as read_spectrum
from esdmon.weights.device.precision import check_precision as check_precision
from esdmon.weights.device.solvers import Solver as Solver
from esdmon.weights.device.solvers import solve_lapack as solve_lapack
from esdmon.weights.device.solvers import solve_torch as solve_torch
from esdmon.weights.device.staging import snapshot as snapshot
from esdmon.weights.device.step_sample import StepSampler as StepSampler
from esdmon.weights.device.update_ratio import Drift as Drift
from esdmon.weights.discovery import Model as Model
from esdmon.weights.discovery import Watched as Watched
from esdmon.weights.discovery import discover as discover
from esdmon.weights.layer_type import layer_type_of as layer_type_of
from esdmon.weights.layers.extract import Extractor as Extractor
from esdmon.weights.layers.extract import extract as extract
from esdmon.weights.layers.parametrized import structure as structure
from esdmon.weights.layers.quantized import unpacker as unpacker
from esdmon.weights.matrix import Matrix as Matrix
from esdmon.weights.matrix import StackSize as StackSize
from esdmon.weights.matrix import UnreadableError as UnreadableError
from esdmon.weights.selection import Selection as Selection
from esdmon.weights.unreadable import unread as unread
from esdmon.weights.validation import MIN_EIGENVALUES as MIN_EIGENVALUES
