"""Decide when a model is read (`times`), how much of it (`budget`), and which matrices come first (`priority`)."""

from esdmon.schedule.times import Schedule as Schedule
from esdmon.schedule.times import as_schedule as as_schedule
from esdmon.schedule.times import at as at
from esdmon.schedule.times import every as every
from esdmon.schedule.times import next_due as next_due
from esdmon.schedule.times import per_decade as per_decade
from esdmon.schedule.times import union as union
