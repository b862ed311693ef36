"""What is said, and written down in its folder, when a run begins or resumes: the data, the model, the flags."""

import os

from mnist import Error, files
from mnist.model import describe_model, probe, rebuild, summarize_model
from mnist.settings import settings_of


def introduce(step, dataset, workdir, flags_text, start_step, last_step, say):
    """Writes flags.txt and model.txt, and says what is trained on what.

    Args:
      step: a `TrainStep`.
      dataset: a `data.Dataset`.
      workdir: the run's folder.
      flags_text: the content of `flags.txt`; none is written without.
      start_step: the step that the run resumes from. last_step: the one that it ends with.
      say: a function of a line.
    """
    folder, name, model = os.path.abspath(workdir), type(step.model).__name__, step.eval_model
    if flags_text:
        files.write_atomically(os.path.join(folder, "flags.txt"), flags_text)
    files.write_atomically(os.path.join(folder, "model.txt"), summarize_model(step.model) + "\n")
    say(f"{dataset.name}: {len(dataset.train.labels):,} training images, {len(dataset.test.labels):,} test images")
    say(f"{name}: {step.model.count_params():,} parameters")
    try:
        rebuild(describe_model(model), [v.numpy() for v in model.variables], probe(model), f"the {name}")
    except Error as error:
        say(f"{error} It trains and resumes; other commands cannot evaluate or export it.")
    for name, setting in settings_of(type(step)).items():
        value = getattr(step, name)
        if setting.is_step and value is not None and value > last_step:
            say(f"--{name}={value}: the run ends before, at step {last_step:,}.")
    say(f"workdir: {workdir}" + (f", resuming from step {start_step:,}" if start_step else ""))
