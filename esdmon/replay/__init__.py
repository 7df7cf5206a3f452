"""Runs that are written to JSONL: find, read and follow them, and apply alert rules again."""

from esdmon.replay.events import records as records
from esdmon.replay.events import reports as reports
from esdmon.replay.rules import Replayed as Replayed
from esdmon.replay.rules import replay as replay
from esdmon.replay.rules import replay_with_faults as replay_with_faults
