"""The outer loop in plain Python: train some steps, evaluate, save, until the run is finished."""

import contextlib

from mnist import Error
from mnist.cli import CtrlC, Interrupted, say
from mnist.data import inspect
from mnist.distributed import Replicas
from mnist.machine import check_portable
from mnist.model import being_imported, check_answers
from mnist.run import Checkpointer, Plan, Recorder, SilentRecorder, Trainer
from mnist.settings import local_path
from mnist.step import Context, View


def train_and_evaluate(
    step, dataset, workdir, *, settings=None, flags_text="", hparams=None, interrupt=None, replicas=None, **options
):
    """Trains a step. Resumes the run if an earlier call in `workdir` has saved one.

    The same step may continue with another `step.optimizer.learning_rate`. Any other change of the numbers is refused.

    Args:
      step: a `TrainStep`.
      dataset: a `data.Dataset`.
      workdir: a path. The folder of the run, created if it does not exist.
      settings: a dict. Further settings that change the numbers, so that a resume with others is refused.
      flags_text: a string. The content of `flags.txt`.
      hparams: a dict. The hyperparameters in TensorBoard. Default: the settings of the step and of the plan.
      interrupt: an `Interrupt`, read between inner loops. Default: Ctrl-C, in the main thread.
      replicas: the `Replicas` that share the run. Default: this process alone.
      options: the settings of `mnist.run.Plan`, such as `epochs=5`.

    Returns: the content of `results.json`, a flat dict.
    Raises: `mnist.Error` for a mistake that the user can correct. `Interrupted` once a run is saved that a signal or
      a closed pipe stopped. KeyboardInterrupt instead after Ctrl-C without an `interrupt`.
    """
    if module := being_imported():
        raise Error(f'{module} trains when it is imported: put what it starts under `if __name__ == "__main__":`.')
    workdir = local_path(workdir)
    plan = Plan(len(dataset.train.labels), **options)
    if plan.portable:
        check_portable()
    inspection = inspect(dataset)
    if not plan.allow_odd_data:
        inspection.refuse()
    check_answers(step.eval_model, dataset)
    replicas = replicas or Replicas()
    replicas.check(step.slices)
    cluster = replicas.cluster
    recorder = Recorder(workdir, plan, flags_text, hparams) if cluster.is_chief else SilentRecorder()
    view = View(workdir, dataset.read_only(), plan.norms_every, plan.histograms_every, recorder.is_silent)
    context = Context(replicas, view, jit_compile=plan.jit_compile)
    stop = contextlib.nullcontext(interrupt) if interrupt else CtrlC()
    with cluster.run(), recorder, stop as stop:
        checkpointer = Checkpointer(step, dataset, workdir, plan, cluster, settings)
        trainer = Trainer(step, dataset, plan, context, checkpointer, recorder, inspection)
        trainer.restore()
        if step.slices > 1:
            say(replicas.describe(step.slices))
        trainer.introduce()
        while True:
            trainer.evaluate_if_due()
            trainer.save_if_due()
            # A reader of stdout that leaves, such as `| head`, ends the run as a signal does.
            asked = cluster.agree([stop.signum, recorder.closed])
            if any(signum or closed for signum, closed in asked):
                trainer.save()
                signum = next((signum for signum, _ in asked if signum), None)
                saved = f"saved in {workdir}" if trainer.state.step else "nothing to save"
                message = f"stopped at step {trainer.state.step}, {saved}"
                if signum and not interrupt:
                    raise KeyboardInterrupt(f"{message}. The same call resumes it.")
                raise Interrupted(message, signum)
            if trainer.why_over():
                return trainer.finish()
            trainer.train_steps()
