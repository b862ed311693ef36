"""The output of a run to stdout: a progress bar on a terminal, plain lines in a log."""

import contextlib
import os
import shutil
import sys
import time

_LOG_SECONDS = 5
_BAR = (8, 20)  # smallest and largest width of the bar in columns


def say(text, end="\n"):
    """Prints to stdout. If stdout fails, the run goes on without it.

    Returns: False if the reader of stdout has closed it, as `| head` does, else True.
    """
    try:
        print(text, end=end, flush=True)
    except UnicodeEncodeError:
        return say(ascii(text)[1:-1], end)
    except BrokenPipeError:
        discard_stdout()
        return False
    except (OSError, ValueError) as error:  # ValueError: stdout is closed
        discard_stdout()
        with contextlib.suppress(OSError, ValueError):
            print(f"cannot write to stdout ({error}): going on without.", file=sys.stderr, flush=True)
    return True


def discard_stdout():
    """Redirects stdout to nothing, together with the text that is still in its buffer."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # stdout is closed, or has no number in a notebook
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")


def in_short(value):
    """Formats a metric with four decimals, or with three digits below 0.001."""
    return f"{value:.3g}" if 0 < abs(value) < 1e-3 else f"{value:.4f}"


class Progress:
    """The progress of a run on stdout.

    Args:
      plan: the `Plan` of the run.

    Attributes:
      closed: bool. Whether the reader of stdout has closed it.
    """

    def __init__(self, plan):
        self._plan = plan
        self._is_terminal = bool(sys.stdout and not sys.stdout.closed and sys.stdout.isatty())
        self._last_time = time.monotonic()
        self._bar_is_open = self.closed = False

    def _print(self, text, end="\n"):
        if not say(text, end):
            self.closed = True

    def update(self, step, means, images_per_second, steps_per_second):
        """Prints the state after `step`. A log gets a line every few seconds.

        Args:
          means: dict. The means over the epoch so far, one for each scalar of the step.
        """
        now, plan = time.monotonic(), self._plan
        if not self._is_terminal and now - self._last_time < _LOG_SECONDS:
            return
        self._last_time = now
        minutes, seconds = divmod(round((plan.last_step - step) / steps_per_second), 60)
        others = sorted(means.keys() - {"loss", "accuracy"})
        fields = {
            "epoch": f"epoch {plan.epoch_of(step)}/{plan.epoch_of(plan.last_step)}",
            "step": f"step {step}/{plan.last_step}",
            **{name: f"{name} {in_short(means[name])}" for name in ("loss", "accuracy", *others)},
            "speed": f"{images_per_second:,.0f} images/s",
            "left": f"{minutes}:{seconds:02} left",
        }
        if not self._is_terminal:
            return self._print(" ".join(fields.values()))
        columns = shutil.get_terminal_size().columns - 1  # a full last column wraps on some terminals
        # Drops fields in this order, until the bar fits.
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
        """Prints a line in place of the bar."""
        self._print(f"\r\x1b[K{text}" if self._bar_is_open else text)
        self._bar_is_open = False

    def close(self):
        """Ends the line of the bar."""
        if self._bar_is_open:
            self._print("")
            self._bar_is_open = False
