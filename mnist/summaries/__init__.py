"""TensorBoard and every picture."""

from mnist.summaries.curves import draw_curves
from mnist.summaries.event_files import Summaries
from mnist.summaries.pictures import draw_run, save_pictures
from mnist.summaries.reliability import draw_reliability

__all__ = [
    "Summaries",
    "draw_curves",
    "draw_reliability",
    "draw_run",
    "save_pictures",
]
