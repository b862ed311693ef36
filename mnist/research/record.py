"""The best recipe: mild augmentation, smoothed labels, averaged weights.

python -m mnist.research.record --schedule=one_cycle --learning_rate=4e-3 --epochs=5
"""

from mnist import train
from mnist.research.augment import Augment
from mnist.research.ema import EMA
from mnist.research.label_smoothing import LabelSmoothing

from absl import flags

FLAGS = flags.FLAGS  # --decay, --degrees, --pixels, --scaling and --smoothing come with the imports


class Record(EMA, Augment, LabelSmoothing):
    """Smoothed labels of augmented images; the average is evaluated."""


if __name__ == "__main__":
    train.launch(
        lambda model, optimizer, **kwargs: Record(
            model,
            optimizer,
            decay=FLAGS.decay,
            degrees=FLAGS.degrees,
            pixels=FLAGS.pixels,
            scaling=FLAGS.scaling,
            alpha=FLAGS.smoothing,
            **kwargs,
        )
    )
