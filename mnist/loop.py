"""The outer loop, in plain Python: train some steps, evaluate, save, until the run is finished."""

import contextlib
import os

from mnist import Error, checkpoint, files
from mnist.distributed import Replicas
from mnist.model import being_imported, checks
from mnist.run import Plan, Session, write_results
from mnist.settings import local_path


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
    checks.check_answers(step.eval_model, dataset)  # before anything is written
    checkpoint.check_attributes(step)
    replicas = replicas or Replicas()
    replicas.check(step.slices)
    cluster = replicas.cluster
    lock = files.lock(folder) if cluster.is_chief else contextlib.nullcontext()
    with cluster.run(), lock, Session(step, dataset, workdir, plan, settings, flags_text, hparams, replicas) as run:
        while True:
            signums, closed = zip(*cluster.agree([interrupt and interrupt.signum, run.progress.closed]), strict=True)
            interrupted = any(signums) or any(closed)  # closed: as by `| head`
            if plan.evaluation_due(run.step_number, run.evaluated):  # also when interrupted: no checkpoint comes twice
                run.evaluate()
            if plan.save_due(run.step_number) or interrupted:
                run.save()
            if interrupted:
                saved = f"saved in {workdir}" if run.step_number else "nothing to save"
                raise Interrupted(f"stopped at step {run.step_number}, {saved}", next(filter(None, signums), None))
            if run.is_over:
                break
            run.train_steps(min(plan.steps_per_loop, plan.steps_to_next_event(run.step_number)))
        run.save()
        results = run.results()
        if cluster.is_chief:
            write_results(results, folder)
        return results
