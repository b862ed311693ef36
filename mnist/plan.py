"""How long a run is, and when what is due: all arithmetic on step numbers, in plain Python.

Steps are counted from 1: after step n, n updates are done. Epochs are counted from 0 within the code, from 1 in
what a person reads.
"""

import functools
import re
import sys

from mnist import Error
from mnist.settings import Setting, take

_length, _speed, _output = (
    functools.partial(Setting, group=group, may_change=True) for group in ("length", "speed", "output")
)


class Plan:
    """The options of a run below its model, optimizer and data.

    Args:
      num_examples: size of the training set.
      settings: those declared here, as keywords.

    Raises: `mnist.Error` for a batch size above the training set and a profile outside of the run; ValueError for
      what is out of its range.
    """

    epochs = _length(5, "Passes over the training set. Five reach 99 % on MNIST.", low=1)
    max_steps = _length(None, "Steps after which to end, even within an epoch. Default: none.", kind=int, low=1)
    early_stopping_patience = _length(
        0, "Epochs without a better validation loss after which to end. Default 0: never.", low=0
    )
    batch_size = Setting(64, "Images per step. 64 as in the classic tutorial.", low=1, group="length")
    steps_per_loop = _speed(
        100,
        "Steps in one call into the graph; no part in the result. 100 take about half a second, which is how "
        "long Ctrl-C waits.",
        low=1,
    )
    eval_batch_size = _speed(500, "Images at a time in evaluation. 100 to 2,500 take the same within 15 %.", low=1)
    jit_compile = Setting(False, "Compile the step with XLA. Off: it is slower on CPU.", group="speed")
    checkpoint_every = _output(None, "Steps between checkpoints. Default: one each epoch.", kind=int, low=1)
    keep_checkpoints = _output(3, "Newest checkpoints to keep. 3 leave two to fall back on.", low=1)
    resume = _output(True, "Resume from the newest checkpoint in --workdir; if false, refuse when there is one.")
    profile = _output(
        None,
        "START:STOP: writes a TensorFlow profile of these steps, counted from 1, both included, for TensorBoard's "
        "Profile tab (the extra `profile` of setup.cfg). A hundred steps show all there is and make 2 MB.",
        kind=str,
    )

    def __init__(self, num_examples, **settings):
        take(self, settings)
        if self.batch_size > num_examples:
            raise Error(f"--batch_size={self.batch_size} is above the {num_examples:,} training images: take fewer.")
        self.num_examples = num_examples
        self.steps_per_epoch = steps_per_epoch(num_examples, self.batch_size)
        self.last_step = min(self.epochs * self.steps_per_epoch, self.max_steps or sys.maxsize)
        self.profiled = self._parse_profile()

    def _parse_profile(self):
        """The first and the last step to profile; None for no profile."""
        if self.profile is None:
            return None
        match = re.fullmatch(r"(\d+):(\d+)", self.profile)
        first, last = map(int, match.groups()) if match else (0, 0)
        if not 1 <= first <= last <= self.last_step:
            raise Error(
                f"--profile={self.profile}: expected START:STOP, two of the {self.last_step:,} steps of the run, as in "
                f"--profile={min(101, self.last_step)}:{min(200, self.last_step)}."
            )
        return first, last

    def position(self, step):
        """Where a run is after `step`: the epoch of the next step, from 0, and its batches that are done."""
        return divmod(step, self.steps_per_epoch)

    def epoch_of(self, step):
        """The epoch that `step` belongs to, from 1."""
        return -(-step // self.steps_per_epoch)

    def batch_sizes(self, first, count):
        """Images in each of `count` steps from `first` on: the last batch of an epoch may be short."""
        short = self.num_examples - (self.steps_per_epoch - 1) * self.batch_size
        return [self.batch_size if step % self.steps_per_epoch else short for step in range(first, first + count)]

    def evaluation_due(self, step, evaluated):
        """After `step`, at the end of each epoch and of the run, unless step `evaluated` was the last evaluation."""
        return step > evaluated and (step % self.steps_per_epoch == 0 or step == self.last_step)

    def save_due(self, step):
        return step % (self.checkpoint_every or self.steps_per_epoch) == 0

    def is_over(self, step, losses=()):
        """Whether a run ends after `step`; `losses`: the validation loss of each evaluation so far."""
        since_best = len(losses) - 1 - min(range(len(losses)), key=losses.__getitem__) if losses else 0
        stalled = 0 < self.early_stopping_patience <= since_best
        return step >= self.last_step or stalled

    def steps_to_next_event(self, step):
        """Steps from `step` to the next at which something is due or a profile begins or ends."""
        periods = [self.steps_per_epoch, *([self.checkpoint_every] if self.checkpoint_every else [])]
        edges = [self.profiled[0] - 1, self.profiled[1]] if self.profiled else []
        ends = [self.last_step, *(edge for edge in edges if edge > step)]
        return min([period - step % period for period in periods] + [end - step for end in ends])


def steps_per_epoch(num_examples, batch_size):
    """Number of batches in an epoch, the short last one included."""
    return -(-num_examples // batch_size)
