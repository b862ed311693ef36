"""Images, labels, their files and their order. Importing this room does not import TensorFlow."""

from mnist.data.batches import as_tensors, check_training_set, epoch_batches, train_batches
from mnist.data.classes import DIGITS, NUM_CLASSES, check_same_classes
from mnist.data.dataset import HOLDOUTS, Dataset, Examples, TestSet, identify, read_only
from mnist.data.image_files import look_of_digits, read_digit, read_image
from mnist.data.inspection import inspect
from mnist.data.order import check_order, epoch_order, steps_per_epoch
from mnist.data.readers import SIDE
from mnist.data.sources import NAMES, load, load_test

__all__ = [
    "DIGITS",
    "HOLDOUTS",
    "NAMES",
    "NUM_CLASSES",
    "SIDE",
    "Dataset",
    "Examples",
    "TestSet",
    "as_tensors",
    "check_order",
    "check_same_classes",
    "check_training_set",
    "epoch_batches",
    "epoch_order",
    "identify",
    "inspect",
    "load",
    "load_test",
    "look_of_digits",
    "read_digit",
    "read_image",
    "read_only",
    "steps_per_epoch",
    "train_batches",
]
