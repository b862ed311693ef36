"""What a run leaves in text: `metrics.jsonl` as it goes on, `results.json` when it is finished."""

import contextlib
import json
import os

from mnist import files
from mnist.run import provenance

# What results.json tells of the machine and the hour: two runs with the same numbers differ in these.
OF_THE_HOUR = {"train_seconds", "images_per_second", *provenance.KEYS}


def write_results(results, folder):
    """Writes `<folder>/results.json`, whole or not at all; null for what is not a number."""
    text = json.dumps(files.without_nan(results), indent=2) + "\n"
    files.write_atomically(os.path.join(folder, "results.json"), text)


class MetricsFile:
    """`<folder>/metrics.jsonl`, a line for each evaluation: step, epoch, seconds of training so far, all metrics.

    A run that goes on is not finished: it removes the results.json that it left when it was shorter.

    Args:
      state: of the run's `Session`. Lines of evaluations that it does not know of are taken back.
      plan: the run's `Plan`.
    """

    def __init__(self, folder, state, plan):
        self._path, self._plan = os.path.join(folder, "metrics.jsonl"), plan
        lines = map(self._line, state.history, state.times)
        files.write_atomically(self._path, "".join(lines))
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(folder, "results.json"))

    def _line(self, entry, seconds):
        position = {"step": entry["step"], "epoch": self._plan.epoch_of(entry["step"]), "seconds": round(seconds, 3)}
        return json.dumps(files.without_nan(position | entry)) + "\n"

    def append(self, entry, seconds):
        """Adds an entry of the history."""
        with files.write_errors(f"write {self._path}"), open(self._path, "a", encoding="utf-8") as file:
            file.write(self._line(entry, seconds))
