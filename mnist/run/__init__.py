"""One run, from its first step to its last."""

from mnist.run.plan import Plan
from mnist.run.profiler import Profiler
from mnist.run.recorder import Recorder, SilentRecorder
from mnist.run.results import OF_THE_HOUR
from mnist.run.session import Session

__all__ = [
    "OF_THE_HOUR",
    "Plan",
    "Profiler",
    "Recorder",
    "Session",
    "SilentRecorder",
]
