"""Destinations of records. Sinks import no torch; `esdmon.plugins` opens the sink of a text `scheme:target`."""

from esdmon.sinks.console import ConsoleSink as ConsoleSink
from esdmon.sinks.csv_file import CsvSink as CsvSink
from esdmon.sinks.jsonl import JsonlSink as JsonlSink
from esdmon.sinks.memory import MemorySink as MemorySink
from esdmon.sinks.prometheus import PrometheusSink as PrometheusSink
from esdmon.sinks.protocol import Sink as Sink
from esdmon.sinks.scalar_logger import ScalarLoggerSink as ScalarLoggerSink
from esdmon.sinks.webhook import WebhookSink as WebhookSink
