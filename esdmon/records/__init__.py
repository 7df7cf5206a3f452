"""Frozen records of plain values, never tensors, that the runtime passes to alert rules, sinks and users."""

from esdmon.records.alert import Alert as Alert
from esdmon.records.alert import AlertState as AlertState
from esdmon.records.alert import LayerFinding as LayerFinding
from esdmon.records.alert import Severity as Severity
from esdmon.records.alert import severity_word as severity_word
from esdmon.records.esd import Esd as Esd
from esdmon.records.layer import EQUAL as EQUAL
from esdmon.records.layer import INACTIVE as INACTIVE
from esdmon.records.layer import MOVED as MOVED
from esdmon.records.layer import LayerReport as LayerReport
from esdmon.records.layer import Status as Status
from esdmon.records.origin import Origin as Origin
from esdmon.records.report import Coverage as Coverage
from esdmon.records.report import Report as Report
from esdmon.records.report import Skipped as Skipped
from esdmon.records.screened import Screened as Screened
from esdmon.records.summary import SPREAD as SPREAD
from esdmon.records.summary import SUMMARISED as SUMMARISED
from esdmon.records.text import show as show
from esdmon.records.values import SCHEMA as SCHEMA
from esdmon.records.values import Record as Record
