"""The best recipes: orthogonal updates, smoothed labels, distorted images, averaged weights, the middle of the image.

    python -m mnist.research.record --flagfile=scripts/recipes/5_epochs.flags

Test accuracy, seeds 0 to 9: with 1_epoch.flags, which neither distorts nor averages, 99.36 ± 0.04 %; with
5_epochs.flags, whose distortions fade at the end, 99.64 ± 0.04 %; with 40_epochs.flags, which is like it,
99.65 ± 0.05 %.
"""

from mnist import train
from mnist.model import CNN
from mnist.research.distillation import Distillation
from mnist.research.elastic import Elastic
from mnist.research.ema import EMA
from mnist.research.fading import Fading
from mnist.research.label_smoothing import LabelSmoothing
from mnist.research.muon import Muon
from mnist.research.winograd import Winograd

import keras


@keras.saving.register_keras_serializable(package="mnist")
class CentredCNN(CNN):
    """The CNN on rows and columns 1 to 26 instead of 0 to 25, which cut through 12 % of MNIST's digits."""

    first = 1


class Recipe(EMA, Muon, Distillation, LabelSmoothing, Fading, Elastic):
    """Learns smoothed labels and teachers' answers of distorted images; the average is evaluated."""


class Record(Recipe, Winograd):
    """The recipe with fewer multiplications."""


if __name__ == "__main__":
    train.launch(Record, model=CentredCNN)
