"""The outer loop, in plain Python: train some steps, evaluate, save, until the run is finished."""

import json
import os

from mnist import files
from mnist.fingerprint import fingerprint_of
from mnist.profiler import Profiler
from mnist.session import Session

import numpy as np


class Interrupted(Exception):
    """The run was asked to stop, has saved and can go on."""


def train_and_evaluate(
    step,
    dataset,
    workdir,
    *,
    epochs,
    max_steps=None,
    batch_size=64,
    steps_per_loop=100,
    eval_batch_size=500,
    checkpoint_every=None,
    keep_checkpoints=3,
    resume=True,
    early_stopping_patience=0,
    jit_compile=False,
    profile=None,
    settings=None,
    flags_text="",
    interrupt=None,
):
    """Trains for `epochs`, at most `max_steps`; goes on where an earlier call in `workdir` stopped.

    Args:
      step: a `TrainStep`.
      dataset: a `data.Dataset`.
      workdir: folder of the run, made if need be.
      profile: a pair of steps, the first and the last to profile, counted from 1.
      settings: a dict of further settings that change the numbers; a resume with others is refused.
      flags_text: the content of `flags.txt`.
      interrupt: an `Interrupt`, looked at between inner loops.
      Others: as the flags of the same names in `mnist.train`.

    Returns: the content of `results.json`, a flat dict.
    Raises: `mnist.Error`; `Interrupted` when everything is saved.
    """
    fingerprint = fingerprint_of(step, dataset, batch_size, jit_compile, settings)
    with files.lock(workdir), Profiler(workdir, profile) as profiler:
        run = Session(
            step, dataset, workdir, profiler, batch_size, epochs, max_steps, checkpoint_every, keep_checkpoints
        )
        run.restore(fingerprint, resume)
        if flags_text:
            files.write_atomically(os.path.join(workdir, "flags.txt"), flags_text)
        run.prepare(jit_compile, eval_batch_size, flags_text)
        while True:
            interrupted = bool(interrupt and interrupt.signum) or run.progress.closed  # as by `| head`
            if run.evaluation_due():  # also when interrupted: no checkpoint is ever written twice
                run.evaluate()
            if run.save_due() or interrupted:
                run.save()
            if interrupted:
                saved = f"saved in {workdir}" if run.step_number else "nothing to save"
                raise Interrupted(f"stopped at step {run.step_number}, {saved}")
            if run.step_number == run.last_step or _has_stalled(run.state["history"], early_stopping_patience):
                break
            run.train_steps(min(steps_per_loop, run.steps_to_next_event()))
        run.save()
        run.summaries.close()
        results = run.results(epochs)
        files.write_atomically(os.path.join(workdir, "results.json"), json.dumps(results, indent=2) + "\n")
        return results


def _has_stalled(history, patience):
    """Whether the validation loss has not got better for `patience` evaluations (0: never)."""
    losses = [entry["validation_loss"] for entry in history]
    return bool(patience and losses) and len(losses) - 1 - int(np.argmin(losses)) >= patience
