"""Saved runs, as other commands load them, and what a run takes from another one."""

from mnist.finished.hand_over import check_source, take_state, take_weights
from mnist.finished.saved_run import Run, load, which_checkpoint

__all__ = ["Run", "check_source", "load", "take_state", "take_weights", "which_checkpoint"]
