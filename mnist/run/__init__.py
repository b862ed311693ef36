"""One run, from its first step to its last."""

from mnist.run.checkpointer import Checkpointer
from mnist.run.overfit import overfit
from mnist.run.plan import Plan
from mnist.run.profiler import Profiler
from mnist.run.provenance import OF_THE_HOUR
from mnist.run.recorder import Recorder, SilentRecorder
from mnist.run.state import RunState
from mnist.run.trainer import Trainer

__all__ = [
    "OF_THE_HOUR",
    "Checkpointer",
    "Plan",
    "Profiler",
    "Recorder",
    "RunState",
    "SilentRecorder",
    "Trainer",
    "overfit",
]
