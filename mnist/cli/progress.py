"""What a run says while it trains: a bar that moves on a terminal, plain lines in a log."""

import contextlib
import os
import shutil
import sys
import time

_LOG_SECONDS = 5
_BAR = (8, 20)  # least and most columns of the bar


def say(text, end="\n"):
    """Prints to stdout, and goes on where that cannot be: a run is worth more than its log.

    Returns: whether the reader of stdout is still there, who leaves as `| head` does.
    """
    try:
        print(text, end=end, flush=True)
    except UnicodeEncodeError:
        return say(ascii(text)[1:-1], end)
    except BrokenPipeError:
        _discard_stdout()
        return False
    except (OSError, ValueError) as error:  # ValueError: somebody has closed it
        _discard_stdout()
        with contextlib.suppress(OSError, ValueError):
            print(f"cannot write to stdout ({error}): going on without.", file=sys.stderr, flush=True)
    return True


def in_short(value):
    """A metric as text: with four decimals, or three digits of what these would make nearly 0."""
    return f"{value:.3g}" if 0 < abs(value) < 1e-3 else f"{value:.4f}"


def _discard_stdout():
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still in the buffer, too
    except (OSError, ValueError):  # closed, or a notebook's
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")


class Progress:
    """Shows how far a run is. Writes to stdout.

    Args:
      plan: the run's `Plan`.
      silent: whether to say nothing.
    """

    def __init__(self, plan, silent=False):
        self._plan = plan
        self._silent = silent
        self._terminal = bool(sys.stdout and not sys.stdout.closed and sys.stdout.isatty())
        self._said = time.monotonic()
        self._bar_is_open = False
        self.closed = False  # whether the reader of stdout has left

    def _print(self, text, end="\n"):
        if not self._silent and not say(text, end):
            self.closed = True

    def update(self, step, means, images_per_second, steps_per_second):
        """Shows the state after `step`; in a log at most every few seconds.

        Args:
          means: a dict of the epoch's means so far, of each scalar of the step.
        """
        now = time.monotonic()
        if not self._terminal and now - self._said < _LOG_SECONDS:
            return
        self._said = now
        plan = self._plan
        minutes, seconds = divmod(round((plan.last_step - step) / steps_per_second), 60)
        others = sorted(means.keys() - {"loss", "accuracy"})
        fields = {
            "epoch": f"epoch {plan.epoch_of(step)}/{plan.epoch_of(plan.last_step)}",
            "step": f"step {step}/{plan.last_step}",
            **{name: f"{name} {in_short(means[name])}" for name in ("loss", "accuracy", *others)},
            "speed": f"{images_per_second:,.0f} images/s",
            "left": f"{minutes}:{seconds:02} left",
        }
        if not self._terminal:
            return self._print(" ".join(fields.values()))
        columns = shutil.get_terminal_size().columns - 1  # a full last column wraps on some terminals
        # What is dropped first where there are too few columns; loss, accuracy and the bar stay longest.
        for name in (*reversed(others), "speed", "step", "left", "epoch", "accuracy"):
            if len(" ".join(fields.values())) + _BAR[0] + 3 <= columns:
                break
            del fields[name]
        text = " ".join(fields.values())
        width = min(columns - len(text) - 3, _BAR[1])
        if width >= _BAR[0]:
            done = width * ((step - 1) % plan.steps_per_epoch + 1) // plan.steps_per_epoch
            text = f"[{'=' * done}{' ' * (width - done)}] {text}"
        self._print(f"\r{text[:columns]}\x1b[K", end="")
        self._bar_is_open = True

    def say(self, text):
        """Prints a line of its own, in place of the bar."""
        self._print(f"\r\x1b[K{text}" if self._bar_is_open else text)
        self._bar_is_open = False

    def close(self):
        """Leaves the bar as it is and what follows on a line of its own."""
        if self._bar_is_open:
            self._print("")
            self._bar_is_open = False
