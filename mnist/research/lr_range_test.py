"""Learning rate range test: raises the rate at each step, and draws the loss against the rate.

Smith, "Cyclical Learning Rates for Training Neural Networks" (arXiv:1506.01186, section 3.3). The rate grows by a
factor, so that all orders of magnitude get the same space. Each evaluation draws the chart to `lr_range_test.png` in
the run's folder, and to Images in TensorBoard. A good highest rate for `--schedule=one_cycle` is somewhat below the
rate with the lowest loss. After a loss of four times the first, the rate is 0 and the test is over. `--learning_rate`
has no effect.

    python -m mnist.research.lr_range_test --lowest=1e-5 --highest=0.1 --range_steps=900 --epochs=1 --eval_every=100
"""

import os

from mnist import Error, train
from mnist.settings import Setting
from mnist.step import TrainStep

import numpy as np
import tensorflow as tf

_SMOOTHED = 20  # steps, whose mean loss is one point of the chart
_TOO_MUCH = 4.0  # times the first loss


class LRRangeTest(TrainStep):
    """A step that sets its learning rate, and stores its loss."""

    lowest = Setting(1e-5, "Learning rate of the first step.", low=1e-12)
    highest = Setting(0.1, "Learning rate of the last step and of all later ones.", low=1e-12)
    range_steps = Setting(
        900,
        "Steps from the lowest to the highest rate. 900: nearly an epoch of MNIST.",
        low=2 * _SMOOTHED,
        is_step=True,
    )

    def __init__(self, model, optimizer, **kwargs):
        super().__init__(model, optimizer, **kwargs)
        if not hasattr(self.optimizer.learning_rate, "assign"):
            raise Error("a range test sets the learning rate itself: leave out --schedule and --warmup.")
        if self.lowest >= self.highest:
            raise Error(f"--lowest={self.lowest:g} is not below --highest={self.highest:g}.")
        self.losses = tf.Variable(tf.zeros(self.range_steps))
        self.optimizer.learning_rate.assign(self.lowest)

    def rates(self):
        """Returns the learning rate of each step, float32 `[range_steps]`."""
        return np.geomspace(self.lowest, self.highest, self.range_steps).astype(np.float32)

    def __call__(self, *batch):
        number = tf.cast(self.iterations, tf.int32)
        scalars = super().__call__(*batch)
        taken = tf.range(self.range_steps) == number
        self.losses.assign(tf.where(taken, tf.cast(scalars["loss"], tf.float32), self.losses))
        rate = tf.gather(self.rates(), tf.minimum(number + 1, self.range_steps - 1))
        is_over = tf.reduce_max(self.losses) > _TOO_MUCH * self.losses[0]
        self.optimizer.learning_rate.assign(tf.where(is_over, 0.0, rate))
        return scalars

    def extra_metrics(self, images, labels, logits):
        metrics = super().extra_metrics(images, labels, logits)
        losses = self.losses.numpy()[: int(self.iterations)]
        over = np.flatnonzero(losses > _TOO_MUCH * losses[:1])
        done = (over[0] + 1 if over.size else len(losses)) // _SMOOTHED * _SMOOTHED
        if done < 2 * _SMOOTHED or self.view.part != "validation":
            return metrics
        losses = losses[:done].reshape(-1, _SMOOTHED).mean(1)
        rates = np.exp(np.log(self.rates()[:done]).reshape(-1, _SMOOTHED).mean(1))
        if self.view.workdir and tf.summary.experimental.get_step() is not None:  # in the process that writes
            path = os.path.join(self.view.workdir, "lr_range_test.png")
            draw(rates, losses, path)
            tf.summary.image("lr_range_test", tf.io.decode_png(tf.io.read_file(path))[tf.newaxis])
        return metrics | {"best_rate": float(rates[losses.argmin()])}


def draw(rates, losses, path):
    """Draws losses against rates, on a logarithmic scale, to a PNG file."""
    import matplotlib.figure  # slow to import

    figure = matplotlib.figure.Figure(figsize=(3.5, 2.8), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.semilogx(rates, losses)
    axes.axvline(rates[losses.argmin()], color="grey", linestyle=":", label=f"lowest at {rates[losses.argmin()]:.2g}")
    axes.set(xlabel="learning rate", ylabel="loss", ylim=(0, min(losses.max(), 2 * losses[0])))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path)


if __name__ == "__main__":
    train.launch(LRRangeTest)
