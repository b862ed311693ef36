"""Trains a step on one batch until the batch is learnt, or finds what did not move."""

from mnist.cli import say
from mnist.data import Examples, as_tensors, read_only
from mnist.model import make_predict_logits
from mnist.step import compile_step, names_of

import numpy as np

_STEPS, _EVERY = 1000, 10  # the most steps, and the steps from one inference to the next


def overfit(step, dataset, batch_size):
    """Trains a `TrainStep` on its first batch alone, and prints what came of it. Writes no file.

    The batch is learnt when `eval_model` gives each image its label.

    Args:
      step: a `TrainStep`.
      dataset: a `data.Dataset`.
      batch_size: an int.

    Returns: a bool. Whether the batch was learnt.
    """
    arrays = step.training_set(*map(read_only, dataset.train))
    order = np.asarray(step.epoch_order(Examples(*map(read_only, arrays[:2])), 0))[:batch_size]
    batch = as_tensors([np.asarray(array)[order] for array in arrays])
    images, labels, *_ = batch
    train_step, variables = compile_step(step), step.trained_variables()
    before = [np.array(variable) for variable in variables]
    predict, losses, right = make_predict_logits(step.eval_model), [], 0
    while right < len(labels) and len(losses) < _STEPS and np.isfinite(losses).all():
        for _ in range(_EVERY):
            scalars, _ = train_step(*batch)
            losses.append(float(scalars["loss"]))
        step.update_eval_model()
        right = int(np.sum(predict(images).numpy().argmax(axis=1) == labels.numpy()))
    course = f"the loss went from {losses[0]:.3g} to {losses[-1]:.3g} in {len(losses)} steps on one batch"
    learnt = right == len(labels)
    say(f"{'learnt' if learnt else 'not learnt'}: {course}, and {right} of {len(labels)} images are right.")
    if not learnt and scalars["accuracy"] == 1:
        say("In training mode all are right: compare it with inference, such as BatchNormalization, or eval_model.")
    pairs = zip(names_of(step.model, variables), before, variables, strict=True)
    if still := ["/".join(name) for name, old, new in pairs if np.array_equal(old, np.array(new))]:
        say(f"Did not move: {', '.join(still)}.")
    return learnt
