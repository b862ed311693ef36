"""The outer loop in plain Python: train some steps, evaluate, save, until the run is finished."""

import contextlib
import os

from mnist import Error, files
from mnist.cli import say
from mnist.distributed import Replicas
from mnist.model import being_imported, check_answers
from mnist.run import Checkpointer, Plan, Recorder, SilentRecorder, Trainer
from mnist.settings import local_path
from mnist.step import Context, View


class Interrupted(Exception):
    """A request to stop a run, which has saved everything that it had computed. `signum` is the signal, or None."""

    def __init__(self, message, signum=None):
        super().__init__(message)
        self.signum = signum


def train_and_evaluate(
    step, dataset, workdir, *, settings=None, flags_text="", hparams=None, interrupt=None, replicas=None, **options
):
    """Trains a step. Resumes the run if an earlier call in `workdir` has saved one.

    Args:
      step: a `TrainStep`.
      dataset: a `data.Dataset`.
      workdir: a path. The folder of the run, created if it does not exist.
      settings: a dict. Further settings that change the numbers, so that a resume with others is refused.
      flags_text: a string. The content of `flags.txt`.
      hparams: a dict. The hyperparameters in TensorBoard. Default: the settings of the step and of the plan.
      interrupt: an `Interrupt`, read between inner loops.
      replicas: the `Replicas` that share the run. Default: this process alone.
      options: the settings of `mnist.run.Plan`, such as `epochs=5`.

    Returns: the content of `results.json`, a flat dict.
    Raises: `mnist.Error` for a mistake that the user can correct. `Interrupted` once a run is saved that a signal or
      a closed pipe stopped.
    """
    if module := being_imported():
        raise Error(f'{module} trains when it is imported: put what it starts under `if __name__ == "__main__":`.')
    workdir = local_path(workdir)
    plan = Plan(len(dataset.train.labels), **options)
    check_answers(step.eval_model, dataset)
    replicas = replicas or Replicas()
    replicas.check(step.slices)
    cluster = replicas.cluster
    view = View(workdir, dataset.read_only(), plan.norms_every, plan.histograms_every, is_silent=not cluster.is_chief)
    context = Context(replicas, view, jit_compile=plan.jit_compile)
    lock = files.lock(os.path.abspath(workdir)) if cluster.is_chief else contextlib.nullcontext()
    recorder = Recorder(workdir, plan, flags_text, hparams) if cluster.is_chief else SilentRecorder()
    with cluster.run(), lock, recorder:
        checkpointer = Checkpointer(step, dataset, workdir, plan, cluster, settings)
        trainer = Trainer(step, dataset, plan, context, checkpointer, recorder)
        state = trainer.restore()
        if step.slices > 1:
            say(replicas.describe(step.slices))
        if plan.is_over(state.step, state.history) and state.evaluated == state.step:
            trainer.compile()  # else the results of other code would be returned
            recorder.say(f"{workdir} is finished, at step {state.step:,}: --epochs or --max_steps may be raised.")
        else:
            recorder.introduce(step, dataset, state.step)
        while True:
            # A reader of stdout that leaves, such as `| head`, ends the run as a signal does.
            asked = cluster.agree([interrupt and interrupt.signum, recorder.closed])
            interrupted = any(signum or closed for signum, closed in asked)
            is_over = plan.is_over(state.step, state.history)  # by a patience that is new, also within an epoch
            # A due evaluation comes before the save, so that the checkpoint holds it.
            if plan.evaluation_due(state.step, state.evaluated) or (is_over and state.evaluated < state.step):
                trainer.evaluate()
            if plan.save_due(state.step) or interrupted:
                trainer.save()
            if interrupted:
                saved = f"saved in {workdir}" if state.step else "nothing to save"
                signum = next((signum for signum, _ in asked if signum), None)
                raise Interrupted(f"stopped at step {state.step}, {saved}", signum)
            if plan.is_over(state.step, state.history):
                break
            trainer.train_steps(min(plan.steps_per_loop, plan.steps_to_next_event(state.step)))
        trainer.save()
        return trainer.finish()
