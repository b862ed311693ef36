"""Images, labels, their files and their order. Importing this room does not import TensorFlow."""

from mnist.data.batches import as_tensors, epoch_batches, train_batches
from mnist.data.classes import DIGITS, NUM_CLASSES
from mnist.data.dataset import Dataset, Examples
from mnist.data.image_files import read_digit, read_image
from mnist.data.order import check_order, epoch_order, steps_per_epoch
from mnist.data.readers import SIDE
from mnist.data.sources import NAMES, load
