"""The outer loop, in plain Python: train some steps, evaluate, save, until the run is finished."""

import contextlib
import os

from mnist import Error, checkpoint, files
from mnist.cli import say
from mnist.distributed import Replicas
from mnist.model import being_imported, check_answers
from mnist.run import Checkpointer, Plan, Recorder, SilentRecorder, Trainer
from mnist.settings import local_path
from mnist.step import Context, View


class Interrupted(Exception):
    """The run was asked to stop, has saved and can be resumed; `signum`: by which signal, if any."""

    def __init__(self, message, signum=None):
        super().__init__(message)
        self.signum = signum


def train_and_evaluate(
    step, dataset, workdir, *, settings=None, flags_text="", hparams=None, interrupt=None, replicas=None, **options
):
    """Trains as the options say; resumes where an earlier call in `workdir` stopped.

    Args:
      step: a `TrainStep`.
      dataset: a `data.Dataset`.
      workdir: folder of the run, made if need be.
      settings: a dict of further settings that change the numbers; a resume with others is refused.
      flags_text: the content of `flags.txt`.
      hparams: a dict of what TensorBoard's HParams tab is to show. Default: the settings of the step and of the plan.
      interrupt: an `Interrupt`, looked at between inner loops.
      replicas: the `Replicas` that share the run. Default: this process alone.
      options: those of `mnist.plan.Plan`, as `epochs=5`.

    Returns: the content of `results.json`, a flat dict.
    Raises: `mnist.Error`; `Interrupted` when everything is saved.
    """
    if module := being_imported():
        raise Error(f'{module} trains when it is imported: put what it starts under `if __name__ == "__main__":`.')
    workdir = local_path(workdir)
    folder = os.path.abspath(workdir)  # wherever the step goes with os.chdir
    plan = Plan(len(dataset.train.labels), **options)
    check_answers(step.eval_model, dataset)  # before anything is written
    checkpoint.check_attributes(step)
    replicas = replicas or Replicas()
    replicas.check(step.slices)
    cluster = replicas.cluster
    view = View(workdir, dataset, plan.norms_every, plan.histograms_every, is_silent=not cluster.is_chief)
    context = Context(replicas, view, jit_compile=plan.jit_compile)
    lock = files.lock(folder) if cluster.is_chief else contextlib.nullcontext()
    recorder = Recorder(workdir, plan, flags_text, hparams) if cluster.is_chief else SilentRecorder()
    with cluster.run(), lock, recorder:
        checkpointer = Checkpointer(step, dataset, workdir, plan, cluster, settings)
        trainer = Trainer(step, dataset, plan, context, checkpointer, recorder)
        state = trainer.restore()
        if step.slices > 1:
            say(replicas.describe(step.slices))
        if trainer.is_over:
            trainer.check_step()  # before the results of other code are returned
            finished = f"{workdir} is finished, at step {state.step:,}"
            recorder.say(f"{finished}: --epochs or --max_steps may be raised.")
        else:
            recorder.introduce(step, dataset, state.step)
        while True:
            # A reader of stdout that leaves, such as `| head`, stops the run as a signal does.
            asked = cluster.agree([interrupt and interrupt.signum, recorder.closed])
            interrupted = any(signum or closed for signum, closed in asked)
            # Before an interrupt ends the run, too, because no checkpoint of the same step is written twice.
            if plan.evaluation_due(state.step, state.evaluated):
                trainer.evaluate()
            if plan.save_due(state.step) or interrupted:
                trainer.save()
            if interrupted:
                saved = f"saved in {workdir}" if state.step else "nothing to save"
                signum = next((signum for signum, _ in asked if signum), None)
                raise Interrupted(f"stopped at step {state.step}, {saved}", signum)
            if trainer.is_over:
                break
            trainer.train_steps(min(plan.steps_per_loop, plan.steps_to_next_event(state.step)))
        trainer.save()
        return trainer.finish()
