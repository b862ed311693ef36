"""Methods of a `TrainStep` are trained and counted correctly, or refused by name before the first step."""

import functools
import warnings

from mnist import Error
from mnist.distributed.additions import added_variables
from mnist.loop import Interrupted, train_and_evaluate
from mnist.model import call_to_train
from mnist.step import TrainStep, compile_step, names_of

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import StopAfter, bits_of, make_linear, read_events

layers, optimizers = keras.layers, keras.optimizers
cross_entropy = tf.nn.softmax_cross_entropy_with_logits


def make_model(**last):
    return make_linear(layers.Dense(8, activation="relu"), **last)


def make(cls, optimizer=None, model=make_model, **settings):
    keras.utils.set_random_seed(0)
    return cls(model(), optimizer or optimizers.Adam(), **settings)


def train(folder, dataset, cls, optimizer=None, model=make_model, steps=5, run=None, **settings):
    step = make(cls, optimizer, model, **settings)
    train_and_evaluate(step, dataset, str(folder / "run"), **{"epochs": 9, "max_steps": steps} | (run or {}))
    return step


def is_refused(match, folder, *args, **kwargs):
    with pytest.raises(Error, match=match) as caught:
        train(folder, *args, **kwargs)
    assert str(caught.value).count("\n") < 2
    assert not (folder / "run" / "checkpoints").exists()


class Head(TrainStep):
    """A step with an auxiliary head on the features, made after the base's constructor."""

    def __init__(self, model, optimizer, **settings):
        super().__init__(model, optimizer, **settings)
        self.head, self.scale = layers.Dense(10, name="head"), tf.Variable(1.0, name="scale")
        self.head.build([None, 8])
        self.features = keras.Model(model.inputs, model.layers[-1].input)

    def look(self, images):
        return self.scale * self.head(self.features(images))

    def compute_loss(self, images, labels):
        loss, logits = super().compute_loss(images, labels)
        return loss + tf.reduce_mean(cross_entropy(labels, self.look(images))), logits


class Trained(Head):
    def trained_variables(self):
        return [*super().trained_variables(), *self.head.trainable_variables, self.scale]


def test_the_variables_that_a_step_adds_are_trained_saved_and_measured(digits, tmp_path):
    make_optimizer = functools.partial(optimizers.Adam, use_ema=True)
    run = {"norms_every": 2, "histograms_every": 2}
    step = train(tmp_path, digits, Trained, make_optimizer(), slices=2, run=run)
    start = make(Trained, make_optimizer())
    for now, before in zip([*step.head.variables, step.scale], [*start.head.variables, start.scale], strict=True):
        assert not np.array_equal(now.numpy(), before.numpy())
    assert [layer for layer, _ in names_of(step.model, step.trained_variables())][-3:] == ["head", "head", "scale"]
    assert {"weights/head", "gradients/scale", "updates/head"} <= read_events(tmp_path / "run/train").keys()
    options = {"slices": 2, "steps": 9}
    train(tmp_path, digits, Trained, make_optimizer(), **options)
    resumed, straight = (train(tmp_path / x, digits, Trained, make_optimizer(), **options) for x in ("", "straight"))
    assert bits_of(resumed) == bits_of(straight)


def unbuild(step, *args, **settings):
    Head.__init__(step, *args, **settings)
    step.head = layers.Dense(10, name="head")


class Stopped(Head):
    def look(self, images):
        return tf.stop_gradient(super().look(images))


class OwnUpdate(Head):
    def trained_variables(self):
        return [*super().trained_variables(), self.scale]

    def compute_gradients(self, images, labels):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(cross_entropy(labels, self.look(images)))
        for variable, gradient in zip(*[self.head.weights, tape.gradient(loss, self.head.weights)], strict=True):
            variable.assign(variable - 0.1 * gradient)
        return super().compute_gradients(images, labels)


def test_a_variable_of_the_loss_that_nothing_trains_is_refused(digits, tmp_path):
    is_refused(r"loss of Head depends on head/0 \(.*kernel\), which nothing trains: return it", tmp_path, digits, Head)
    half = type("Half", (Trained,), {"trained_variables": lambda self: [*Head.trained_variables(self), self.scale]})
    is_refused("loss of Half depends on head/0", tmp_path, digits, half, slices=2)
    late = type("Late", (Trained,), {"__init__": unbuild})
    is_refused("trained_variables of Late has more variables once .* build its layers", tmp_path, digits, late)
    for cls in (Stopped, OwnUpdate):
        assert train(tmp_path / cls.__name__, digits, cls, steps=2).iterations == 2


class TwoRates(Trained):
    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.second = optimizers.SGD(0.5)
        self.second.build(self.head.trainable_variables)

    def apply_gradients(self, gradients):
        super().apply_gradients([*gradients[:4], None, None, gradients[-1]])
        self.second.apply_gradients(zip(gradients[4:6], self.head.trainable_variables, strict=True))


def test_a_head_may_have_an_optimizer_of_its_own(digits, tmp_path):
    start = make(TwoRates)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        step = train(tmp_path, digits, TwoRates, optimizers.SGD(0.0), steps=1, seed=np.int64(0))
    images, labels = start.prepare_batch(*(part[start.epoch_order(digits.train, 0)[:64]] for part in digits.train))
    expected = start.compute_gradients(images, labels)[0][4]
    np.testing.assert_allclose(start.head.kernel - step.head.kernel, 0.5 * expected, rtol=1e-4, atol=1e-7)
    assert np.array_equal(start.model.get_weights()[0], step.model.get_weights()[0])
    resumed, straight = (train(tmp_path / x, digits, TwoRates, optimizers.SGD(0.0), steps=4) for x in ("", "straight"))
    assert bits_of(resumed) == bits_of(straight)


class OwnLoss(TrainStep):
    def compute_loss(self, images, labels):
        logits = call_to_train(self.model, images)
        return tf.reduce_mean(cross_entropy(labels, logits)), logits


class OwnLossWith(OwnLoss):
    def compute_loss(self, images, labels):
        loss, logits = super().compute_loss(images, labels)
        return self.add_losses(loss), logits


class Squares(layers.Layer):
    def call(self, x):
        self.add_loss(0.1 * keras.ops.mean(keras.ops.square(x)))
        return x


@pytest.mark.parametrize(
    "model",
    [lambda: make_model(kernel_regularizer="l2"), lambda: keras.Sequential([make_model(), Squares()])],
)
def test_a_loss_of_its_own_has_the_losses_of_the_model_once_or_is_refused(model, digits, tmp_path):
    is_refused(
        "compute_loss of OwnLoss leaves out the losses of reg.*self.add_losses", tmp_path, digits, OwnLoss, model=model
    )
    own, plain = (train(tmp_path / cls.__name__, digits, cls, model=model) for cls in (OwnLossWith, TrainStep))
    assert own.model.get_weights()[0].tobytes() == plain.model.get_weights()[0].tobytes()


def preparing(change, **methods):
    def prepare_batch(self, images, labels):
        return change(*TrainStep.prepare_batch(self, images, labels))

    return type("Mine", (TrainStep,), {"prepare_batch": prepare_batch, **methods})


def doubled(images, labels):
    return images, labels * tf.where(tf.range(tf.shape(labels)[0])[:, None] == 3, 2.0, 1.0)


def test_rows_of_labels_that_do_not_sum_to_one_are_refused(digits, tmp_path):
    match = "rows of labels that do not sum to 1.*in compute_loss"
    is_refused(match, tmp_path, digits, preparing(doubled), slices=2)
    smooth = preparing(lambda images, labels: (images, labels * 0.7 + 0.3 * labels[::-1]))
    own = preparing(doubled, compute_loss=OwnLoss.compute_loss)
    for i, cls in enumerate((smooth, own)):
        train(tmp_path / str(i), digits, cls, steps=2)


def method(name, function):
    return type("Mine", (TrainStep,), {name: function})


def no_settings(self, model, optimizer):
    TrainStep.__init__(self, model, optimizer)


def dropping(self, model, optimizer, **settings):
    TrainStep.__init__(self, model, optimizer)


def cut(function):
    """Returns a class that changes what a method of the base returns, the method that the argument is named after."""
    name = function.__code__.co_varnames[0]
    return method(name, lambda self, *batch: function(getattr(TrainStep, name)(self, *batch)))


def combining(function, names="a"):
    cls = cut(lambda compute_loss: (dict.fromkeys(names, compute_loss[0]), compute_loss[1]))
    return type("Mine", (cls,), {"combine_gradients": function})


@pytest.mark.parametrize(
    ("cls", "match"),
    [
        (preparing(lambda x, y: (x, tf.argmax(y, 1))), r"of Mine gave labels \[None\], expected \[None, 10\]"),
        (preparing(lambda x, y: x), "prepare_batch of Mine returned a tensor .*, expected images and labels"),
        (preparing(lambda x, y: (x, y, y)), "compute_loss of Mine does not take a batch of .* and 1 more"),
        (cut(lambda compute_loss: compute_loss[0]), "expected the loss and the logits"),
        (cut(lambda compute_loss: (tf.zeros([3]), compute_loss[1])), r"a tensor \[3\] for 'loss', expected a scalar"),
        (cut(lambda compute_loss: ({"loss": compute_loss[0]}, compute_loss[1])), "losses named .'loss'., expected"),
        (cut(lambda compute_gradients: compute_gradients[0]), "expected a list of gradients and a dict of scalars"),
        (cut(lambda compute_gradients: (compute_gradients[0][:3], {})), "returned 3 gradients, but Mine trains 4"),
        (combining(lambda self, g: g), "combine_gradients returned a dict, expected a list of gradients"),
        (combining(None, names=[1]), r"losses named .1., expected texts except 'loss'"),
        (method("trained_variables", lambda self: iter([])), "returned a list_iterator, expected a list of variables"),
        (method("trained_variables", lambda self: self.optimizer.variables[:1]), "iteration, which is not trainable"),
        (method("trained_variables", lambda self: self.model.weights * 2), "kernel twice"),
        (method("__init__", no_settings), "Mine.__init__ got an unexpected keyword argument 'seed'.*settings"),
        (method("__init__", dropping), "Mine.__init__ does not pass on 'seed'. Write it as"),
        (method("__init__", lambda self, model, optimizer, **settings: None), r"does not call super\(\).__init__"),
        (
            method("compute_losses", TrainStep.compute_loss),
            r"nothing calls Mine.compute_losses: did you mean compute_l",
        ),
    ],
)
def test_a_method_that_returns_something_else_is_refused_in_a_line(cls, match, digits, tmp_path):
    is_refused(match, tmp_path, digits, cls, seed=3)


def test_a_method_with_nearly_the_name_of_another_may_be_called(digits, tmp_path):
    methods = {
        "compute_losses": TrainStep.compute_loss,
        "compute_loss": lambda self, *batch: self.compute_losses(*batch),
    }
    train(tmp_path, digits, type("Helped", (TrainStep,), methods), steps=1)


@pytest.mark.parametrize("seed", [-1, 2**31, 1.5, "a"])
def test_a_seed_out_of_range_is_refused_at_once(seed):
    with pytest.raises(ValueError, match="expected an integer from 0"):
        TrainStep(make_model(), optimizers.SGD(), seed=seed)


class Drawing(TrainStep):
    def compute_loss(self, images, labels):
        images += 0.1 * tf.random.stateless_normal(tf.shape(images), self.random_seed("noise"))
        return super().compute_loss(images, labels)


class Helping(Drawing):
    """A step with a decorated method behind another one."""

    @tf.function
    def compute_loss(self, images, labels):
        return TrainStep.compute_loss(self, self.draw(images), labels)

    @tf.function
    def draw(self, images):
        return images + 0.1 * tf.random.stateless_normal(tf.shape(images), self.random_seed("noise"))


class ByAttribute(Helping):
    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.draw = tf.function(lambda images: Helping.draw.python_function(self, images))


@pytest.mark.parametrize("slices", [1, 2])
def test_a_decorated_method_has_the_draws_of_its_slice(slices, digits, tmp_path):
    found = []
    for cls in (Drawing, Helping):
        step = make(cls, slices=slices)
        update = compile_step(step)
        for i in range(3):
            update(*(tf.constant(part[64 * i : 64 * i + 64]) for part in digits.train))
        found.append([v.numpy().tobytes() for v in step.model.variables])
    assert found[0] == found[1]
    if slices == 1:
        train(tmp_path, digits, ByAttribute, steps=2)
    else:
        is_refused("ByAttribute draws in a tf.function that all slices share", tmp_path, digits, ByAttribute, slices=2)


class Summing(TrainStep):
    """A step that adds up the pixels, the images and the steps that its loss sees, and has a metric of Keras."""

    def __init__(self, *args, aggregation=tf.VariableAggregation.SUM, **settings):
        super().__init__(*args, **settings)
        self.pixels = tf.Variable(0.0, aggregation=aggregation, trainable=False)
        self.images = tf.Variable(0, aggregation=aggregation)
        self.steps, self.mean = tf.Variable(0.0), keras.metrics.Mean()
        self.average = tf.Variable(0.0)

    @tf.function
    def compute_loss(self, images, labels):
        self.pixels.assign_add(tf.reduce_sum(images))
        self.images.assign(self.images + tf.shape(labels)[0])
        self.steps.assign_add(1.0)
        self.mean.update_state(tf.reduce_sum(images, axis=[1, 2, 3]))
        self.average.assign_sub(0.1 * (self.average - tf.reduce_mean(images)))
        return super().compute_loss(images, labels)


def test_sums_over_the_images_of_a_slice_are_sums_over_the_batch_or_refused(digits, tmp_path):
    step = make(Summing, slices=4)
    update, whole = compile_step(step), digits.train.images[:130].astype(np.float64) / 255
    for i in (0, 64, 128):  # the last batch has fewer images than slices
        update(*(tf.constant(part[i : min(i + 64, 130)]) for part in digits.train))
    assert float(step.pixels) == pytest.approx(whole.sum(), rel=1e-5)
    assert (int(step.images), float(step.steps)) == (130, 3)
    assert float(step.mean.result()) == pytest.approx(whole.sum() / 130, rel=1e-5)
    expected = 0.0
    for i in (0, 64, 128):
        expected += 0.1 * (whole[i : i + 64].mean() - expected)
    assert float(step.average) == pytest.approx(expected, rel=1e-5)
    none = {"aggregation": tf.VariableAggregation.NONE}
    is_refused("adds to the variable .* one slice at a time.*SUM", tmp_path, digits, Summing, slices=2, **none)
    train(tmp_path, digits, Summing, steps=2, **none)


def scatter(counts, classes):
    counts.scatter_add(tf.IndexedSlices(tf.ones_like(classes, tf.float32), classes))


def add_n(counts, classes):
    counts.assign(tf.add_n([counts, tf.reduce_sum(tf.one_hot(classes, 10), axis=0)]))


@pytest.mark.parametrize("count", [scatter, add_n])
def test_additions_of_any_kind_are_found(count):
    counts = tf.Variable(tf.zeros([10]))
    function = tf.function(lambda classes: count(counts, classes), input_signature=[tf.TensorSpec([None], tf.int64)])
    assert added_variables(function.get_concrete_function().graph, [counts]) == [counts]


class Alone(Drawing):
    """A step that updates twice, and does not call the method of the base that counts the batches."""

    def apply_gradients(self, gradients):
        super().apply_gradients(gradients)
        super().apply_gradients(gradients)

    def __call__(self, images, labels):
        gradients, scalars = self.compute_gradients(*self.prepare_batch(images, labels))
        self.apply_gradients(gradients)
        return scalars


def test_batches_are_counted_whatever_an_optimizer_counts(digits, tmp_path):
    run = {"batch_size": 300, "steps_per_loop": 2}  # five steps an epoch
    with pytest.raises(Interrupted):
        train(tmp_path, digits, Alone, steps=12, run=run | {"interrupt": StopAfter(4)})
    resumed, straight = (train(tmp_path / x, digits, Alone, steps=12, run=run) for x in ("", "straight"))
    assert int(resumed.iterations) == 12
    assert bits_of(resumed) == bits_of(straight)


class Named(Trained):
    def compute_loss(self, images, labels):
        digit, logits = TrainStep.compute_loss(self, images, labels)
        return {"digit": digit, "aux": tf.reduce_mean(cross_entropy(labels, self.look(images)))}, logits


class Counted(Named):
    passes = 0

    def compute_loss(self, images, labels):
        Counted.passes += 1
        return super().compute_loss(images, labels)


@pytest.mark.parametrize("slices", [1, 2])
def test_named_losses_are_shown_and_their_gradients_are_summed(slices, digits):
    Counted.passes = 0
    batch = [tf.constant(part[:64]) for part in digits.train]
    named, summed = (make(cls, slices=slices) for cls in (Counted, Trained))
    found, expected = (compile_step(step)(*batch) for step in (named, summed))
    assert Counted.passes == (1 if slices == 1 else slices + 1)
    assert float(found[0]["digit"] + found[0]["aux"]) == pytest.approx(float(found[0]["loss"]), rel=1e-6)
    for a, b in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    eager = make(Named, slices=slices)(*batch)
    assert float(eager["aux"]) == pytest.approx(float(found[0]["aux"]), rel=1e-5)


class Weighted(TrainStep):
    """A step that flips a label, counts the classes once, and weights the images by the frequency of their class."""

    def training_set(self, images, labels):
        with pytest.raises(ValueError, match="read-only"):
            labels[0] = 3
        labels = labels.astype(np.int64)
        labels[0] = 9 - labels[0]
        weights = 1.0 / np.bincount(labels)[labels]
        return images, labels, weights / weights.mean(), np.arange(len(labels))

    def epoch_order(self, examples, epoch):
        self.state["first"] = int(examples.labels[0])
        return super().epoch_order(examples, epoch)

    def compute_loss(self, images, labels, weights, places):
        logits = call_to_train(self.model, images)
        self.seen.scatter_update(tf.IndexedSlices(weights, places))
        return tf.reduce_mean(weights * cross_entropy(labels, logits)), logits

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.seen = tf.Variable(tf.zeros([1500]), aggregation=tf.VariableAggregation.SUM, trainable=False)


def test_the_training_set_of_a_step_travels_with_the_batch(digits, tmp_path, monkeypatch):
    options = {"slices": 2, "run": {"batch_size": 300}}
    step = train(tmp_path, digits, Weighted, steps=5, **options)  # an epoch
    labels = digits.train.labels.copy()
    labels[0] = 9 - labels[0]
    assert step.state["first"] == labels[0]
    weights = 1.0 / np.bincount(labels)[labels]
    np.testing.assert_allclose(step.seen.numpy(), weights / weights.mean(), rtol=1e-5)
    resumed, straight = (train(tmp_path / x, digits, Weighted, steps=7, **options) for x in ("", "straight"))
    assert bits_of(resumed) == bits_of(straight)
    monkeypatch.setattr(
        Weighted, "training_set", lambda self, images, labels: (images, labels, np.ones(1500, "f"), labels)
    )
    with pytest.raises(Error, match="holds a run with other settings: training_set"):
        train(tmp_path, digits, Weighted, steps=9, **options)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda x, y: (x, y + 1), "labels 1 to 10, expected uint8 images with labels 0 to 9"),
        (lambda x, y: (x, y, np.ones(7)), r"float32 \[7\] for array 2, expected numbers \[1500\]"),
        (lambda x, y: (x, y, y), "prepare_batch of Mine does not take a batch of images, labels and 1 more"),
    ],
)
def test_a_training_set_that_does_not_fit_is_refused(change, match, digits, tmp_path):
    cls = preparing(lambda *batch: batch, training_set=lambda self, images, labels: change(images, labels))
    is_refused(match, tmp_path, digits, cls)
