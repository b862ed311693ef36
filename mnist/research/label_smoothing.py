"""Label smoothing: the target has 1 - s for the label, and spreads s over all classes.

Szegedy et al., "Rethinking the Inception Architecture" (arXiv:1512.00567, section 7).

    python -m mnist.research.label_smoothing --smoothing=0.05 --flagfile=scripts/recipes/variants.flags

Two epochs, seeds 0 to 2, test accuracy: 99.35 ± 0.04 %. The plain step gives 99.26 ± 0.08 %.
"""

from mnist import train
from mnist.settings import Setting
from mnist.step import TrainStep


class LabelSmoothing(TrainStep):
    """A step with smoothed one-hot labels."""

    smoothing = Setting(0.05, "Share of the uniform distribution in the target. 0: none.", low=0.0, high=1.0)

    def prepare_batch(self, *batch):
        images, labels, *more = super().prepare_batch(*batch)
        return images, labels * (1 - self.smoothing) + self.smoothing / labels.shape[1], *more


if __name__ == "__main__":
    train.launch(LabelSmoothing)
