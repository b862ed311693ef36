"""Wrong numbers that the loss does not show: flipped bits, hidden NaN, norms that overflow, weights that stay."""

from mnist import Error, checkpoint
from mnist.loop import train_and_evaluate
from mnist.research.ema import EMA
from mnist.research.sam import SAM
from mnist.step import Recomputation, TrainStep

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import SMALL, bits_of, make_linear, run_here

LAYERS = keras.layers


def make_step(cls=TrainStep, make_layers=tuple, optimizer=None, **settings):
    keras.utils.set_random_seed(0)
    return cls(make_linear(*make_layers()), optimizer or keras.optimizers.Adam(1e-3), seed=0, **settings)


class Writing(TrainStep):
    def compute_gradients(self, images, labels):
        gradients, scalars = super().compute_gradients(images, labels)
        with self.view.every(2):
            tf.summary.scalar("own/norm", tf.linalg.global_norm(gradients))
        return gradients, scalars


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (Writing, {"optimizer": keras.optimizers.SGD}),
        (TrainStep, {"optimizer": lambda: keras.optimizers.AdamW(use_ema=True), "slices": 2}),
        (type("Both", (EMA, SAM), {}), {"optimizer": keras.optimizers.Adam}),
    ],
    ids=["writing", "slices", "ema"],
)
def test_a_run_that_computes_steps_twice_has_the_same_bits(cls, options, digits, tmp_path):
    runs = []
    for every in (0, 1, 3):
        given = options | {"optimizer": options["optimizer"]()}
        step = make_step(cls, lambda: [LAYERS.Dropout(0.5), LAYERS.BatchNormalization()], **given)
        train_and_evaluate(step, digits, tmp_path / str(every), max_steps=8, verify_every=every, norms_every=2)
        runs.append(bits_of(step))
    assert runs[0] == runs[1] == runs[2]


@pytest.mark.parametrize(
    ("wrong", "named", "judged"), [(1, "model/0 (", "the second"), (2, "optimizer/3 (", "the first")]
)
def test_a_bit_that_flips_in_one_of_two_computations_stops_the_run(wrong, named, judged, digits, tmp_path, monkeypatch):
    take = Recomputation.take

    def take_and_flip(self, number, take_step):
        calls = []

        def flipping():
            calls.append(1)
            result = take_step()
            if number == 7 and len(calls) == wrong:
                variable = checkpoint.variables_of(step)[named.partition(" ")[0]]
                bits = variable.numpy()
                bits.reshape(-1).view(np.uint32)[0] ^= 1  # the last bit
                variable.assign(bits)
            return result

        return take(self, number, flipping)

    options = {"max_steps": 12, "checkpoint_every": 4, "verify_every": 3}
    step = make_step()
    with monkeypatch.context() as patch:
        patch.setattr(Recomputation, "take", take_and_flip)
        with pytest.raises(Error, match=r"step 7 had other bits .*; ckpt-4 is the last good") as found:
            train_and_evaluate(step, digits, tmp_path / "run", **options)
    assert f"first in {named}" in str(found.value)
    assert f"agrees with {judged};" in str(found.value)
    resumed, straight = make_step(), make_step()
    train_and_evaluate(resumed, digits, tmp_path / "run", **options)
    train_and_evaluate(straight, digits, tmp_path / "straight", max_steps=12)
    assert bits_of(resumed) == bits_of(straight)


class SpoiledConvolution(TrainStep):
    """A step that makes a NaN in front of max pooling and relu, so that the loss stays at equal answers."""

    def apply_gradients(self, gradients):
        super().apply_gradients(gradients)
        kernel = self.model.layers[0].kernel
        kernel.assign(tf.where(self.iterations == 3, np.nan, kernel))


class SpoiledSlot(TrainStep):
    def __init__(self, model, optimizer, **settings):
        super().__init__(model, optimizer, **settings)
        self.seen = tf.Variable(1.0, trainable=False)

    def __call__(self, images, labels):
        self.seen.assign(self.seen * tf.where(self.iterations == 3, np.inf, 1.0))
        return super().__call__(images, labels)


@pytest.mark.parametrize(("cls", "name"), [(SpoiledConvolution, "model/0"), (SpoiledSlot, "seen/0")])
def test_a_nan_that_the_loss_hides_stops_the_run_within_one_inner_loop(cls, name, digits, tmp_path):
    keras.utils.set_random_seed(0)
    inner = [LAYERS.Conv2D(2, 3), LAYERS.MaxPooling2D(4), LAYERS.ReLU(), LAYERS.Flatten(), LAYERS.Dense(10)]
    step = cls(keras.Sequential([keras.Input([28, 28, 1]), *inner]), keras.optimizers.Adam(), seed=0)
    with pytest.raises(Error, match=rf"{name} \(.*\) is not finite at step 5; no checkpoint was saved yet"):
        train_and_evaluate(step, digits, tmp_path, max_steps=24, steps_per_loop=5)


class Huge(TrainStep):
    factor = 1e22

    def compute_gradients(self, images, labels):
        gradients, scalars = super().compute_gradients(images, labels)
        late = tf.where(self.iterations < 5, 1.0, self.factor)
        return [gradient * late for gradient in gradients], scalars


class HugeBias(Huge):
    def compute_gradients(self, images, labels):
        (kernel, bias), scalars = TrainStep.compute_gradients(self, images, labels)
        return [kernel, tf.fill(bias.shape, 1e19)], scalars


@pytest.mark.parametrize(("cls", "named"), [(Huge, "kernel within steps 1 to 24"), (HugeBias, "bias within steps")])
def test_a_norm_that_overflows_under_clipnorm_stops_the_run(cls, named, digits, tmp_path):
    step = make_step(cls, optimizer=keras.optimizers.SGD(0.1, clipnorm=1.0))
    with pytest.raises(Error, match=rf"--clipnorm makes zeros of the gradient of \S*{named}.* no checkpoint"):
        train_and_evaluate(step, digits, tmp_path / "huge", max_steps=24)
    cls = type("Large", (Huge,), {"factor": 1e17})  # is clipped rightly
    step = make_step(cls, optimizer=keras.optimizers.SGD(0.1, clipnorm=1.0))
    assert train_and_evaluate(step, digits, tmp_path / "large", max_steps=24)["train_loss"] < 2.5


@pytest.mark.parametrize(
    ("scale", "line"), [(0.0, ""), (1.0, ""), (50.0, "weights give large logits"), (None, "are trained already")]
)
def test_a_first_loss_far_from_equal_answers_is_reported(scale, line, digits, tmp_path, capsys):
    step = make_step()
    if scale is None:
        train_and_evaluate(step, digits, tmp_path / "before", epochs=8)
        capsys.readouterr()
        step = TrainStep(step.model, keras.optimizers.Adam(1e-3), seed=0)
    else:
        step.model.layers[-1].kernel.assign(scale * step.model.layers[-1].kernel)
    train_and_evaluate(step, digits, tmp_path / "run", max_steps=1)
    out = capsys.readouterr().out
    assert ("equal answers have ln(10) = 2.3" in out and line in out) if line else "equal answers" not in out


OVERFIT = f"""
from mnist import train
from mnist.step import TrainStep
import keras
import tensorflow as tf
{SMALL}

class Frozen(TrainStep):
    def compute_gradients(self, images, labels):
        gradients, scalars = super().compute_gradients(images, labels)
        return [tf.zeros_like(gradients[0]), *gradients[1:]], scalars

class Blind(TrainStep):
    def prepare_batch(self, images, labels, *more):
        return super().prepare_batch(tf.zeros_like(images), labels, *more)

if __name__ == "__main__":
    train.launch(CLASS, model=small)
"""


@pytest.mark.parametrize(
    ("name", "code", "lines"),
    [
        ("TrainStep", 0, ["learnt: the loss went from ", "64 of 64 images are right."]),
        ("Frozen", 0, ["64 of 64 images are right.", "/kernel.\n"]),
        ("Blind", 1, ["not learnt", "in 1000 steps", "/kernel, conv"]),
    ],
)
def test_overfit_learns_one_batch_or_names_what_did_not_move(name, code, lines, tmp_path):
    (tmp_path / "mine.py").write_text(OVERFIT.replace("CLASS", name))
    done = run_here("mine.py", "--overfit", "--dataset=digits", "--learning_rate=0.01", cwd=tmp_path)
    assert done.returncode == code
    assert all(line in done.stdout for line in lines)
    assert ("Did not move" in done.stdout) == (name != "TrainStep")
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == ["mine.py"]
