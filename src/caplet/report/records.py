"""The saved records of one run, as a report reads them."""

from caplet.runs.folder import ENVIRONMENT, METRICS, SETTINGS, SPLITS
from caplet.runs.records import DETAILS, FILES, FLIPS, KEPT, PREDICTIONS, SEARCH, TRACE, VERIFIED, RunKind, RunRecords

Kind = RunKind

__all__ = [
    "DETAILS",
    "ENVIRONMENT",
    "FILES",
    "FLIPS",
    "KEPT",
    "METRICS",
    "PREDICTIONS",
    "SEARCH",
    "SETTINGS",
    "SPLITS",
    "TRACE",
    "VERIFIED",
    "Kind",
    "RunKind",
    "RunRecords",
]
