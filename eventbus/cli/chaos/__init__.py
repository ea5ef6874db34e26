"""`eventbus chaos`: publishes and receives on a cluster while connections break and edges drain.

scripts/chaos uses the same workload, ledger and report with servers of its own, which it kills,
suspends and isolates.
"""

from eventbus.cli.chaos.ledger import Ledger, Log, Message, Promise, Publication, examine
from eventbus.cli.chaos.plan import Kind, Step, make_plan
from eventbus.cli.chaos.publishers import (
    HttpSender,
    NotAcknowledged,
    Publisher,
    Send,
    body_of,
    library_sender,
)
from eventbus.cli.chaos.receivers import EVENT, KINDS, Access, Receiver, Refused
from eventbus.cli.chaos.report import Report, Row, Window, make_report, table
from eventbus.cli.chaos.run import Fault, Run, Scale
from eventbus.cli.chaos.workload import NothingFlows, Workload

__all__ = [
    "EVENT",
    "KINDS",
    "Access",
    "Fault",
    "HttpSender",
    "Kind",
    "Ledger",
    "Log",
    "Message",
    "NotAcknowledged",
    "NothingFlows",
    "Promise",
    "Publication",
    "Publisher",
    "Receiver",
    "Refused",
    "Report",
    "Row",
    "Run",
    "Scale",
    "Send",
    "Step",
    "Window",
    "Workload",
    "body_of",
    "examine",
    "library_sender",
    "make_plan",
    "make_report",
    "table",
]
