"""What a run leaves in `results.json` when it is finished: its last metrics, and what they are of."""

import json
import os

from mnist import checks, files


def results_of(step, dataset, plan, state):
    """The flat dict of a finished run but for its test metrics; `state`: of its `Session`."""
    return {
        "dataset": dataset.name,
        "parameters": step.model.count_params(),
        "seed": step.seed,
        "epochs": plan.epochs,
        "steps": state["step"],
        "batch_size": plan.batch_size,
        "train_seconds": state["seconds"],
        "images_per_second": state["images"] / state["seconds"],
        **{name: value for name, value in state["history"][-1].items() if name != "step"},
    }


def write_results(results, folder):
    """Writes `<folder>/results.json`, whole or not at all; null for what is not a number."""
    text = json.dumps(checks.without_nan(results), indent=2) + "\n"
    files.write_atomically(os.path.join(folder, "results.json"), text)
