"""One run, from its first step to its last."""

from mnist.run.plan import Plan
from mnist.run.profiler import Profiler
from mnist.run.results import OF_THE_HOUR, write_results
from mnist.run.session import Session

__all__ = [
    "OF_THE_HOUR",
    "Plan",
    "Profiler",
    "Session",
    "write_results",
]
