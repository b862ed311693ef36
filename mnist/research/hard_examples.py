"""Hard examples first: from the second epoch on, repeats the examples with the highest losses.

Loshchilov and Hutter, "Online Batch Selection for Faster Training of Neural Networks" (arXiv:1511.06343, section 4).
Probabilities fall exponentially with the rank of the loss when the epoch begins. An example comes as often as its
probability times the size of the epoch, rounded up or down at random.

    python -m mnist.research.hard_examples --pressure=4 --flagfile=scripts/recipes/variants.flags

Two epochs, seeds 0 to 2, test accuracy: 99.29 ± 0.05 %. The plain step gives 99.26 ± 0.08 %.
"""

from mnist import train
from mnist.metrics import example_losses
from mnist.model import make_predict_logits
from mnist.settings import Setting
from mnist.step import TrainStep

import numpy as np


class HardExamples(TrainStep):
    """A step that evaluates the whole training set when an epoch begins, for a quarter of the time of an epoch."""

    pressure = Setting(4.0, "Ratio of the probabilities of the hardest and the easiest example. 1: equal.", low=1.0)

    def __init__(self, model, optimizer, **kwargs):
        super().__init__(model, optimizer, **kwargs)
        self.predict_logits = make_predict_logits(model)

    def epoch_order(self, examples, epoch):
        order = super().epoch_order(examples, epoch)
        if not epoch:  # losses of an untrained model are random
            return order
        losses = example_losses(self.predict_logits(examples.images), examples.labels)  # [N]
        ranks = np.argsort(np.argsort(-losses, kind="stable"))  # [N], 0 for the hardest
        chances = self.pressure ** (-ranks / len(ranks))
        ends = np.cumsum(len(ranks) * chances / chances.sum())
        offset = np.random.default_rng([self.seed, epoch]).uniform(0.1, 0.9)  # far from round-off in `ends`
        chosen = np.searchsorted(ends, np.arange(len(ranks)) + offset)  # [N], in the order of the examples
        return chosen[order]


if __name__ == "__main__":
    train.launch(HardExamples)
