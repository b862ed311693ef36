"""Images, labels, their files and their order. Importing this room does not import TensorFlow."""

from mnist.data.batches import as_tensors, check_order, epoch_batches, epoch_order, steps_per_epoch, train_batches
from mnist.data.ink import find_ink
from mnist.data.readers import DIGITS, NUM_CLASSES, SIDE
from mnist.data.sets import BOX, NAMES, Dataset, Examples, is_framed, load

__all__ = [
    "BOX",
    "DIGITS",
    "NAMES",
    "NUM_CLASSES",
    "SIDE",
    "Dataset",
    "Examples",
    "as_tensors",
    "check_order",
    "epoch_batches",
    "epoch_order",
    "find_ink",
    "is_framed",
    "load",
    "steps_per_epoch",
    "train_batches",
]
