"""The length of a run, and when it evaluates and saves. All of it is arithmetic on step numbers, in plain Python.

Steps are counted from 1, so that n updates are done after step n. Epochs are counted from 0 in the code, and from 1 in
what a person reads.
"""

import functools
import re
import sys

from mnist import Error
from mnist.data import steps_per_epoch
from mnist.metrics import is_lower_better
from mnist.settings import Setting, take

_data, _length, _speed, _output = (
    functools.partial(Setting, group=group, may_change=True) for group in ("data", "length", "speed", "output")
)


class Plan:
    """The schedule of a run: its length, and the steps at which it evaluates, saves and shows something.

    Args:
      num_examples: an int. The size of the training set.
      settings: the settings below, as keywords.

    Raises: `mnist.Error` for a batch larger than the training set, or a profile outside of the run. ValueError for a
      setting out of its range.
    """

    epochs = _length(5, "Passes over the training set. Five reach 99 % on MNIST.", low=1)
    max_steps = _length(None, "Steps after which the run ends, even within an epoch. Default: none.", kind=int, low=1)
    early_stopping_patience = _length(
        0, "Epochs without a better validation loss after which the run ends. Default 0: never.", low=0
    )
    batch_size = Setting(64, "Images per step. 64 as in the classic tutorial.", low=1, group="length")
    steps_per_loop = _speed(
        100,
        "Steps in one call into the graph. They do not change the result. 100 take about half a second, which is how "
        "long Ctrl-C waits.",
        low=1,
    )
    eval_batch_size = _speed(
        100, "Images in one batch of an evaluation. They do not change the result. 100 take the least memory.", low=2
    )
    jit_compile = Setting(False, "Compile the step with XLA. Off: it is slower on CPU.", group="speed")
    portable = Setting(
        False,
        "Compute the same bits on any x86-64 processor with AVX2, given the same versions of all packages. Uses one "
        "thread for an operation, and refuses what is known to differ, as 1/sqrt(x), XLA and bfloat16.",
        group="speed",
    )
    eval_every = _output(None, "Steps between evaluations. Default: one at the end of each epoch.", kind=int, low=1)
    checkpoint_every = _output(
        None, "Steps between checkpoints, beside those before evaluations. Default: one each epoch.", kind=int, low=1
    )
    keep_checkpoints = _output(3, "Newest checkpoints to keep. 3 leave two to fall back on.", low=1)
    keep_best = _output(
        None,
        "Keeps one more checkpoint, of the best evaluation by this key of metrics.jsonl, such as validation_loss or "
        "max:validation_f1. The best loss or error is the lowest, the best accuracy the highest. Other keys need min: "
        "or max:. Default: validation_loss with early stopping, else none. An empty value keeps none.",
        kind=str,
    )
    norms_every = _output(
        100,
        "Steps between norms of each layer's gradients, weights and updates relative to weights. Each takes the time "
        "of half a step. 0: none.",
        low=0,
    )
    histograms_every = _output(
        None,
        "Steps between histograms of weights and gradients. 0: none. Default: one at the end of each epoch.",
        kind=int,
        low=0,
    )
    verify_every = _output(
        0,
        "Steps between two steps that are computed twice, to find a processor or a memory that computes wrongly. A "
        "run whose bits differ stops. 50 compute 2 % more steps. Default 0: none.",
        low=0,
    )
    resume = _output(True, "Resume from the newest checkpoint in --workdir. If false, refuse if there is one.")
    profile = _output(
        None,
        "START:STOP, the first and the last step of a TensorFlow profile, for TensorBoard's Profile tab (the extra "
        "`profile` of setup.cfg). A hundred steps are enough and make 2 MB.",
        kind=str,
    )
    allow_odd_data = _data(
        False,
        "Train on data that are refused as certainly wrong, such as images of grey levels 0 and 1, or 201 classes "
        "because of one label 200.",
    )

    check_step = _output(
        True,
        "Before the first step of a new run, compare the compiled step with its code in eager mode, and its gradients "
        "with differences of the loss. If false, train in any case.",
    )

    def __init__(self, num_examples, **settings):
        take(self, settings)
        if self.batch_size > num_examples:
            raise Error(f"--batch_size={self.batch_size} is above the {num_examples:,} training images: take fewer.")
        if self.portable and self.jit_compile:
            raise Error("--portable: XLA compiles for the processor that it runs on: leave out --jit_compile.")
        self.num_examples = num_examples
        self.steps_per_epoch = steps_per_epoch(num_examples, self.batch_size)
        self.last_step = min(self.epochs * self.steps_per_epoch, self.max_steps or sys.maxsize)
        self.profiled = self._parse_profile()
        self.best = self._parse_best()
        if self.histograms_every is None:
            self.histograms_every = self.steps_per_epoch

    def _parse_profile(self):
        """Returns the first and the last step to profile. Returns None for no profile."""
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

    def _parse_best(self):
        """Returns the metric that --keep_best names, and whether its highest value is the best. None: keep none."""
        asked = self.keep_best
        if asked is None and self.early_stopping_patience:
            asked = "validation_loss"
        if not asked:
            return None
        match = re.fullmatch(r"(min:|max:)?((?:train|validation)_\S+)", asked)
        if not match:
            raise Error(
                f"--keep_best={asked}: expected a metric of training or validation, as validation_loss or "
                "max:validation_accuracy."
            )
        order, key = match.groups()
        lower = order == "min:" if order else is_lower_better(key)
        if lower is None:
            raise Error(f"--keep_best={asked}: is the lowest or the highest the best? Write min:{key} or max:{key}.")
        return key, not lower

    def position(self, step):
        """Returns the epoch of step `step + 1`, counted from 0, and how many batches of that epoch are done."""
        return divmod(step, self.steps_per_epoch)

    def epoch_of(self, step):
        """Returns the epoch that `step` belongs to, counted from 1."""
        return -(-step // self.steps_per_epoch)

    def batch_sizes(self, first, count):
        """Returns the number of images in each of `count` steps from `first` on. The last of an epoch may be short."""
        short = self.num_examples - (self.steps_per_epoch - 1) * self.batch_size
        return [self.batch_size if step % self.steps_per_epoch else short for step in range(first, first + count)]

    def evaluation_due(self, step, evaluated):
        """Returns whether to evaluate after `step`: at 0, every `eval_every`, at the end of each epoch and of the run.

        Args:
          evaluated: the step of the last evaluation, which is not repeated. -1 before the first.
        """
        ends = step % self.steps_per_epoch == 0 or step == self.last_step
        return step > evaluated and (ends or (self.eval_every is not None and step % self.eval_every == 0))

    def save_due(self, step):
        """Returns whether to save after `step`."""
        return step > 0 and step % (self.checkpoint_every or self.steps_per_epoch) == 0

    def why_over(self, step, history=(), ended=None):
        """Returns why a run ends after `step` and which flag makes it longer, as text. Returns "" if it goes on.

        Args:
          history: a list of dicts, one for each evaluation, with `step` and `validation_loss`.
          ended: an int. The last step of the plan whose run `after_evaluation` ended early. None: it ended none.
        """
        ends = [entry for entry in history if entry["step"] and entry["step"] % self.steps_per_epoch == 0]
        losses = [entry["validation_loss"] for entry in ends]
        since_best = len(losses) - 1 - min(range(len(losses)), key=losses.__getitem__) if losses else 0
        longer = "--epochs or --max_steps may be raised"
        if step >= self.last_step:
            return longer
        if 0 < self.early_stopping_patience <= since_best:
            return f"no better validation loss for {since_best} epochs. --early_stopping_patience may be raised"
        if ended is not None and ended >= self.last_step:
            return f"after_evaluation of the step ended it. {longer}"
        return ""

    def steps_to_next_event(self, step):
        """Returns the steps from `step` to the next evaluation, save or edge of the profile, or to the end."""
        periods = [n for n in (self.steps_per_epoch, self.checkpoint_every, self.eval_every) if n]
        edges = [self.profiled[0] - 1, self.profiled[1]] if self.profiled else []
        ends = [self.last_step, *(edge for edge in edges if edge > step)]
        return min([period - step % period for period in periods] + [end - step for end in ends])
