"""TensorBoard's event files, and the pictures of a run."""

from mnist.summaries.curves import draw_curves, draw_reliability
from mnist.summaries.event_files import Summaries
from mnist.summaries.pictures import draw_run, save_pictures
from mnist.summaries.tabs import hparams_of

__all__ = [
    "Summaries",
    "draw_curves",
    "draw_reliability",
    "draw_run",
    "hparams_of",
    "save_pictures",
]
