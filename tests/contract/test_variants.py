"""Each variant of mnist/research against the formulas of its paper, its command and its flags."""

import importlib
import json

from mnist import Error, checkpoint
from mnist.loop import train_and_evaluate
from mnist.metrics import example_losses
from mnist.model import CNN
from mnist.research.record import CentredCNN
from mnist.step import TrainStep

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from test_research import daily, make_small, make_step, run, variant, weights_of


def batch_of(digits, size=64, start=0):
    """Returns the images and the labels of a batch."""
    return [part[start : start + size] for part in digits.train]


def run_one(step, digits, number):
    """Runs one step on a batch of its own."""
    step(*map(tf.constant, batch_of(digits, start=64 * number)))


def is_same(arrays, others):
    return all(np.array_equal(a, b) for a, b in zip(arrays, others, strict=True))


def test_sam_takes_the_gradient_where_the_paper_says(digits):
    plain, step = make_step(TrainStep), make_step(variant("sam"), rho=0.5)
    batch = plain.prepare_batch(*batch_of(digits))
    gradients, _ = plain.compute_gradients(*batch)
    norm = np.sqrt(sum(float(tf.reduce_sum(g**2)) for g in gradients))
    plain.model.set_weights([w + 0.5 * g / norm for w, g in zip(weights_of(plain), gradients, strict=True)])
    expected, _ = plain.compute_gradients(*batch)
    before = weights_of(step)
    for a, b in zip(step.compute_gradients(*batch)[0], expected, strict=True):
        assert np.linalg.norm(a - b) <= 1e-4 * np.linalg.norm(b)  # ReLU near 0
    assert is_same(weights_of(step), before)


def test_adversarial_training_sees_the_attacked_images(digits):
    plain, step = make_step(TrainStep), make_step(variant("adversarial"), epsilon=0.2)
    images, labels = plain.prepare_batch(*batch_of(digits))
    expected, scalars = plain.compute_gradients(step.attack(step.model, images, labels, 0.2, True), labels)
    gradients, attacked_scalars = step.compute_gradients(images, labels)
    assert is_same(gradients, expected)
    assert float(attacked_scalars["loss"]) == float(scalars["loss"]) > float(plain.compute_loss(images, labels)[0])


def test_slices_give_the_gradients_of_the_whole_batch(digits):
    whole = make_step(TrainStep, model=CentredCNN)
    sliced = make_step(variant("winograd"), slices=4, model=CentredCNN)
    for step in (whole, sliced):  # without biases ReLU would amplify round-off in the black margins
        step.model.set_weights([w + 0.1 * (w.ndim == 1) for w in step.model.get_weights()])
    # As in training, the graph has no fixed batch size.
    specs = [tf.TensorSpec([None, 28, 28, 1]), tf.TensorSpec([None, 10])]
    compute = tf.function(sliced.compute_gradients, input_signature=specs)
    for size in (1, 2, 6, 64):
        # In these images round-off changes no maximum of the pooling.
        batch = whole.prepare_batch(*batch_of(digits, size, start=256))
        expected, scalars = whole.compute_gradients(*batch)
        gradients, sliced_scalars = compute(*batch)
        for a, b in zip(gradients, expected, strict=True):
            assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b)  # float32 sums in another order
        assert float(sliced_scalars["loss"]) == pytest.approx(float(scalars["loss"]), rel=1e-5)
        assert float(sliced_scalars["accuracy"]) == pytest.approx(float(scalars["accuracy"]), rel=1e-6)


def test_winograd_refuses_other_layers_and_losses():
    for module, name in (("rdrop", "DropoutCNN"), ("wide", "WideCNN")):
        model = getattr(importlib.import_module(f"mnist.research.{module}"), name)()
        with pytest.raises(Error, match=rf"{name}, expected a mnist\.model\.CNN"):
            variant("winograd")(model, keras.optimizers.Adam())
    cls = type("Both", (variant("winograd"), variant("rdrop")), {})
    with pytest.raises(Error, match="RDrop has to stand before Winograd"):
        cls(CNN(), keras.optimizers.Adam())


def class_weighted(step, images, logits, labels):
    return -tf.reduce_sum(labels * np.float32([*range(10)]) * tf.nn.log_softmax(logits), axis=1)


def generalized(step, images, logits, labels):
    return (1 - tf.reduce_sum(labels * tf.nn.softmax(logits), axis=1) ** 0.7) / 0.7


def smoothed(step, images, logits, labels):
    return tf.nn.softmax_cross_entropy_with_logits(0.9 * labels + 0.01, logits)


def distilled(step, images, logits, labels):
    """Returns Hinton's mix of the loss of the labels and of the loss of the mean of teachers."""
    answers = np.mean([tf.nn.softmax(model(images) / 3) for model in step.teachers], axis=0)
    soft = -tf.reduce_sum(answers * tf.nn.log_softmax(logits / 3), axis=1)
    return 0.4 * tf.nn.softmax_cross_entropy_with_logits(labels, logits) + 0.6 * 9 * soft


@pytest.fixture(scope="module")
def teacher(digits, tmp_path_factory):
    """The folder of a run that may teach."""
    folder = tmp_path_factory.mktemp("teacher")
    train_and_evaluate(make_step(TrainStep, model=make_small), digits, str(folder), epochs=1)
    return str(folder)


LOSSES = {
    "class_weights": (class_weighted, {"class_weights": [*"0123456789"]}),
    "noisy_labels": (generalized, {}),
    "label_smoothing": (smoothed, {"smoothing": 0.1}),
    "distillation": (distilled, {"temperature": 3.0, "share": 0.6}),
}


@pytest.mark.parametrize("slices", [1, 4])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_has_the_gradient_of_its_formula(name, slices, teacher, digits):
    formula, options = LOSSES[name]
    options = options | ({"teacher": [teacher, teacher]} if name == "distillation" else {})
    plain, step = make_step(TrainStep), make_step(variant(name), slices=slices, **options)
    for model in getattr(step, "teachers", [])[:1]:
        model.set_weights([0.5 * w for w in model.get_weights()])
    images, labels = plain.prepare_batch(*batch_of(digits))
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(formula(step, images, plain.model(images), labels))
    expected = tape.gradient(loss, [v.value for v in plain.model.trainable_variables])
    gradients, scalars = step.compute_gradients(*step.prepare_batch(*batch_of(digits)))
    assert float(scalars["loss"]) == pytest.approx(float(loss), rel=1e-5)
    for a, b in zip(gradients, expected, strict=True):
        assert np.linalg.norm(a - b) <= 1e-4 * np.linalg.norm(b)


def test_balanced_weights_give_each_class_the_same_share_and_wrong_ones_are_refused():
    step = make_step(variant("class_weights"), model=make_small)
    step.training_set(np.zeros([111, 28, 28, 1], np.uint8), np.repeat(np.uint8([0, 1, 7]), [100, 10, 1]))
    np.testing.assert_allclose(step.weights.numpy()[[0, 1, 7]] * [100, 10, 1], 111 / 3, rtol=1e-6)
    for wrong in ("1,2", "balanced,1", "nan" + 9 * ",1", "-1" + 9 * ",1"):
        with pytest.raises(Error, match=f"--class_weights={wrong}: expected 10 numbers of at least 0, or balanced"):
            make_step(variant("class_weights"), model=make_small, class_weights=wrong.split(","))


@pytest.mark.parametrize(("slices", "sign"), [(1, 1.0), (4, 1.0), (4, -1.0)])
def test_surgery_projects_gradients_that_are_in_conflict(slices, sign, digits):
    class Recording(variant("gradient_surgery")):
        def combine_gradients(self, gradients):
            self.parts = gradients
            return super().combine_gradients(gradients)

    step = make_step(Recording, slices=slices)
    step.head.kernel.assign(tf.where(tf.range(10)[:, None] % 2 == 0, sign, -sign))  # 1 calls odd digits even
    gradients, scalars = step.compute_gradients(*step.prepare_batch(*batch_of(digits)))
    one, other = (np.concatenate([np.ravel(g) for g in step.parts[name][:-2]]) for name in ("digit", "parity"))
    opposed = min(one @ other, 0.0)
    assert bool(opposed) == (sign > 0)
    assert np.sign(scalars["gradient_cosine"]) == -sign
    expected = one - opposed / (other @ other) * other + other - opposed / (one @ one) * one
    np.testing.assert_allclose(np.concatenate([np.ravel(g) for g in gradients[:-2]]), expected, atol=1e-6)
    assert is_same(gradients[-2:], step.parts["parity"][-2:])


def test_a_share_of_labels_is_flipped_and_the_metric_knows_their_true_class(digits, tmp_path):
    step = make_step(variant("noisy_labels"), model=make_small, flipped=0.3)
    noisy = step.training_set(*digits.train)[1]
    wrong = noisy != digits.train.labels
    assert 0.25 < wrong.mean() < 0.35
    assert {*noisy} == {*range(10)}
    results = train_and_evaluate(step, digits, str(tmp_path), epochs=1)
    right = step.model(digits.train.images[wrong] / 255).numpy().argmax(1) == digits.train.labels[wrong]
    assert results["test_flipped_accuracy"] == pytest.approx(right.mean(), abs=1 / len(right))


def test_a_plateau_lowers_the_rate(digits, tmp_path, capsys):
    step = make_step(variant("plateau"), model=make_small, factor=0.5, patience=2)
    step.optimizer.learning_rate.assign(0.3)  # too high
    train_and_evaluate(step, digits, str(tmp_path), epochs=1, eval_every=1)
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("learning rate")]
    losses = [json.loads(line)["validation_loss"] for line in (tmp_path / "metrics.jsonl").open()]
    rates, best, waited = [0.3], losses[0], 0
    for loss in losses[1:]:
        best, waited = (loss, 0) if loss < best else (best, waited + 1)
        if waited == 2:
            rates, waited = [*rates, rates[-1] / 2], 0
    assert float(step.optimizer.learning_rate) == pytest.approx(rates[-1])
    assert len(printed) == len(rates) - 1 > 1


def test_an_attack_stays_within_its_bounds_and_lowers_the_accuracy(digits):
    options = {"epsilon": 0.0, "attack_steps": 3, "robust_epsilons": (0.0, 0.3)}
    step = make_step(variant("adversarial"), model=make_small, **options)
    run(step, digits, [48])
    images, labels = step.prepare_batch(digits.test.images, digits.test.labels)
    attacked = step.attack(step.model, images, labels, 0.3, False).numpy()
    assert np.abs(attacked - images).max() <= 0.3 + 1e-6
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    metrics = step.extra_metrics(*digits.test, None)
    assert metrics["robust_accuracy_0.3"] < metrics["robust_accuracy_0"] - 0.2


def test_hard_examples_come_more_often_and_the_first_epoch_is_the_plain_one(digits):
    step = make_step(variant("hard_examples"), pressure=9.0)
    run(step, digits, [24])
    assert np.array_equal(step.epoch_order(digits.train, 0), make_step(TrainStep).epoch_order(digits.train, 0))
    order = step.epoch_order(digits.train, 1)
    losses = example_losses(step.predict_logits(digits.train.images), digits.train.labels)
    times = np.bincount(order, minlength=len(losses))[np.argsort(-losses)]  # the hardest first
    third = len(times) // 3
    chances = 9.0 ** (-np.arange(len(times)) / len(times))
    expected = [part.sum() / chances.sum() * len(times) for part in np.split(chances, [third, 2 * third])]
    found = [part.sum() for part in np.split(times, [third, 2 * third])]
    np.testing.assert_allclose(found, expected, atol=0.03 * len(times))  # each count is rounded up or down
    assert set(times) <= {0, 1, 2, 3}
    assert not np.array_equal(order, step.epoch_order(digits.train, 2))


def test_the_noise_scale_of_many_like_batches_is_that_of_their_covariance():
    class Known(variant("gradient_noise")):  # gradients of mean 0.1 and covariance 1
        def compute_loss(self, images, labels):
            weights = self.model.trainable_variables[-1].value  # [10]
            vectors = tf.reshape(images, [-1, 784])[:, :10]
            return tf.reduce_mean(tf.linalg.matvec(vectors, weights)), tf.zeros_like(labels)

    rng, step = np.random.default_rng(0), make_step(Known, model=make_small, noise_decay=0.999)
    compute = tf.function(step.compute_gradients, reduce_retracing=True)
    for size in [64] * 1000 + [1]:  # the last batch has one image
        images = (0.1 + rng.standard_normal([size, 28, 28, 1])).astype(np.float32)
        _, scalars = compute(images, np.zeros([size, 10], np.float32))
    assert float(scalars["gradient_noise_scale"]) == pytest.approx(1 / 0.1**2, rel=0.25)  # 1,000 draws: 7 %


@pytest.mark.parametrize("name", daily("hard_examples"))
def test_every_command_runs(name, start, tmp_path):
    done = start(f"mnist.research.{name}", "--dataset=digits", "--max_steps=1", f"--workdir={tmp_path}/run")
    assert done.returncode == 0, done.stderr
    assert checkpoint.load_newest(str(tmp_path / "run" / "checkpoints"))[1]["step"] == 1


def test_a_teacher_of_other_classes_or_none_is_refused(teacher, start, tmp_path):
    with pytest.raises(Error, match=r"--teacher=.* has 10 classes, the data has 7"):
        variant("distillation")(CNN(num_classes=7), keras.optimizers.Adam(), teacher=[teacher])
    done = start("mnist.research.distillation", "--dataset=digits", f"--teacher={tmp_path}/none")
    assert done.returncode == 1
    none = f"{tmp_path}/none"
    why = f"{none} is not a folder with a run. Train first: python -m mnist.train."
    assert done.stderr == f"error: --teacher={none}: {why}\n"
    done = start("mnist.research.distillation", "--dataset=digits", f"--teacher={teacher},")
    assert done.stderr == "error: --teacher=: expected folders, separated by commas.\n"


def test_an_elastic_field_moves_pixels_by_what_it_says_and_smoothly(digits):
    elastic = importlib.import_module("mnist.research.elastic")
    smooth = elastic.smoothing(4.0)
    np.testing.assert_allclose((smooth**2).sum(1), 1, rtol=1e-5)  # so that all places move as far
    correlation = (smooth[:-4] * smooth[4:]).sum(1)  # of white noise that a Gaussian of sigma blurs: exp(-(d/2 sigma)²)
    np.testing.assert_allclose(correlation[2:-2], np.exp(-((4 / 8) ** 2)), atol=0.03)
    affine = make_step(variant("augment"), pixels=6.0)
    images = affine.prepare_batch(*batch_of(digits))[0]
    still = elastic.bilinear(images, *np.meshgrid(np.arange(28, dtype=np.float32), np.arange(28, dtype=np.float32)))
    assert np.array_equal(still, images)
    maps = affine.draw_maps(images)
    a, b, c, d, e, f = np.moveaxis(maps.numpy(), 1, 0)[:, :, None, None]
    x, y = np.meshgrid(np.arange(28, dtype=np.float32), np.arange(28, dtype=np.float32))
    through = elastic.bilinear(images, a * x + b * y + c, d * x + e * y + f)
    np.testing.assert_allclose(through, affine.resample(images, maps), atol=1e-5)
    step = make_step(elastic.Elastic, displacement=0.7)
    field = step.draw_field(2000).numpy()
    np.testing.assert_allclose(field.std(axis=0), 0.7, rtol=0.1)
    step.draw_field = lambda size: field[:size]
    bent = elastic.bilinear(images, a * x + b * y + c + field[:64, 0], d * x + e * y + f + field[:64, 1])
    assert np.array_equal(step.resample(images, maps), bent)
    assert np.abs(bent - through).mean() > 0.01


def test_r_drop_adds_the_divergence_of_two_passes(digits):
    rdrop = importlib.import_module("mnist.research.rdrop")
    step, plain = (make_step(cls, model=rdrop.DropoutCNN) for cls in (rdrop.RDrop, TrainStep))
    batch = step.prepare_batch(*batch_of(digits))
    loss = step.compute_loss(*batch)[0]
    (first, p), (second, q) = plain.compute_loss(*batch), plain.compute_loss(*batch)
    p, q = (tf.nn.softmax(x).numpy().astype(np.float64) for x in (p, q))
    divergence = np.mean(np.sum(p * np.log(p / q) + q * np.log(q / p), axis=1)) / 2
    assert divergence > 1e-4
    assert float(loss) == pytest.approx(float((first + second) / 2 + divergence / 2), rel=1e-5)


def test_a_range_test_tells_the_rate_of_the_lowest_loss(digits, tmp_path):
    step = make_step(variant("lr_range_test"), model=make_small, lowest=1e-4, highest=10.0, range_steps=120)
    results = train_and_evaluate(step, digits, str(tmp_path), epochs=5)
    rates = step.rates()
    losses = step.losses.numpy().reshape(-1, 20).mean(1)
    assert results["test_accuracy"] < 0.5  # the last rates undo all
    entry = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert entry["validation_best_rate"] == pytest.approx(np.sqrt(rates[::20] * rates[19::20])[losses.argmin()])
    assert Image.open(tmp_path / "lr_range_test.png").size == (350, 280)
    with pytest.raises(Error, match="a range test sets the learning rate itself: leave out --schedule and --warmup"):
        variant("lr_range_test")(
            make_small("float32"), keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1, 9))
        )


def test_an_orthogonal_update_has_singular_values_near_one(digits):
    muon = importlib.import_module("mnist.research.muon")
    for shape, scale in (([3, 3, 16, 24], (144 / 24) ** 0.5), ([5, 40], 1.0)):
        kernel = tf.random.stateless_normal(shape, [1, 2]) * tf.exp(tf.random.stateless_normal(shape[-1:], [3, 4]))
        matrix = muon.orthogonalize(kernel).numpy().reshape(-1, shape[-1]) / scale
        values = np.linalg.svd(matrix, compute_uv=False)
        assert values.min() > 0.3
        assert values.max() < 1.3
        left, _, right = np.linalg.svd(kernel.numpy().reshape(matrix.shape), full_matrices=False)
        assert np.sum(matrix * (left @ right)) / len(values) > 0.6  # the same directions
    step = make_step(muon.Muon, orthogonal=2.0)
    before = step.model.get_weights()
    run_one(step, digits, 0)
    moved = [a - b for a, b in zip(step.model.get_weights(), before, strict=True)]
    kernel = moved[2].reshape(-1, 64) / (1e-3 * 2 * (288 / 64) ** 0.5)
    assert 0.3 < np.linalg.norm(kernel) / 64**0.5 < 1.3
    assert np.abs(moved[-2]).max() == pytest.approx(1e-3, rel=1e-2)  # Adam's first step
