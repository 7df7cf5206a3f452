"""Open a checkpoint of any layout as a mapping of names to tensors."""

from esdmon.weights.checkpoint.open import open_checkpoint as open_checkpoint
from esdmon.weights.checkpoint.open import open_model as open_model
from esdmon.weights.checkpoint.open import opened as opened
