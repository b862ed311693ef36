"""What a run says while it trains: a bar that moves on a terminal, plain lines in a log."""

import os
import sys
import time

_LOG_SECONDS = 5


class Progress:
    """Shows how far a run is. Writes to stdout.

    Args:
      last_step: the step at which the run ends.
      steps_per_epoch: batches in an epoch.
    """

    def __init__(self, last_step, steps_per_epoch):
        self._last_step = last_step
        self._steps_per_epoch = steps_per_epoch
        self._epochs = -(-last_step // steps_per_epoch)
        self._terminal = sys.stdout.isatty()
        self._said = time.monotonic()
        self.closed = False  # whether whoever read stdout has left

    def _print(self, text, end="\n"):
        try:
            print(text, end=end, flush=True)
        except BrokenPipeError:
            self.closed = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def update(self, step, scalars, images_per_second, steps_per_second):
        """Shows the state after `step`; in a log at most every few seconds.

        Args:
          scalars: a dict of the last step's scalars.
        """
        now = time.monotonic()
        if not self._terminal and now - self._said < _LOG_SECONDS:
            return
        self._said = now
        epoch, in_epoch = divmod(step - 1, self._steps_per_epoch)
        minutes, seconds = divmod(round((self._last_step - step) / steps_per_second), 60)
        names = sorted(scalars, key=lambda name: (name != "loss", name))
        text = (
            f"epoch {epoch + 1}/{self._epochs} step {step}/{self._last_step} "
            f"{' '.join(f'{name} {scalars[name]:.4f}' for name in names)} "
            f"{images_per_second:,.0f} images/s {minutes}:{seconds:02} left"
        )
        if self._terminal:
            done = 20 * (in_epoch + 1) // self._steps_per_epoch
            text = f"\r[{'=' * done}{' ' * (20 - done)}] {text}\x1b[K"
        self._print(text, end="" if self._terminal else "\n")

    def say(self, text):
        """Prints a line of its own, the bar out of the way."""
        self._print(f"\r\x1b[K{text}" if self._terminal else text)
