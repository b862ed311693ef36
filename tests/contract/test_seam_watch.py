"""Checkpoints save what a hook of a step keeps and reads, or a run refuses it by name in one line."""

import dataclasses
import functools
import importlib
import json
import random
import sys

from mnist import Error, checkpoint, data
from mnist.loop import train_and_evaluate
from mnist.step import TrainStep

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import make_linear

RATE, SEEN = 1, []


def weigh(x):
    return x


def own(setup=lambda self: None, **methods):
    """Returns a class of a step. `setup` is called at the end of its constructor."""

    def __init__(self, *args, **kwargs):
        TrainStep.__init__(self, *args, **kwargs)
        setup(self)

    return type("Own", (TrainStep,), {"__init__": __init__} | methods)


def train(workdir, digits, cls, epochs=2, optimizer=keras.optimizers.Adam, **options):
    keras.utils.set_random_seed(0)
    step = cls(make_linear(keras.layers.Dropout(0.1)), optimizer())
    options = {"batch_size": 500, "norms_every": 0} | options
    return step, train_and_evaluate(step, digits, str(workdir), epochs=epochs, **options)


def is_refused(match, workdir, digits, cls, **options):
    with pytest.raises(Error, match=match) as caught:
        train(workdir, digits, cls, **options)
    assert str(caught.value).count("\n") < 2


def ordering(effect):
    def epoch_order(self, examples, epoch):
        result = effect(self)
        return np.arange(len(examples.labels)) if result is None else result

    return {"epoch_order": epoch_order}


def measuring(effect):
    return {"extra_metrics": lambda self, images, labels, logits: effect(self, labels, logits) or {}}


def preparing(effect):
    def prepare_batch(self, images, labels):
        images, labels = TrainStep.prepare_batch(self, images, labels)
        result = effect(self)
        return images if result is None else images * tf.cast(result, tf.float32), labels

    return {"prepare_batch": prepare_batch}


class Sampler:
    __slots__ = ("count", "other")

    def __init__(self):
        self.count, self.other = 0, {"me": self}  # a cycle

    def __call__(self, *_):
        self.count += 1


@dataclasses.dataclass
class Holder:
    of: object


def count_up(*_):
    count_up.times += 1


class Config(dict):
    __getattr__ = dict.__getitem__


class Counter:
    times = 0

    def __call__(self, *_):
        Counter.times += 1


class Heir(Counter):
    pass


def keep(**values):
    return lambda self: [setattr(self, name, value() if callable(value) else value) for name, value in values.items()]


def add(self, *_):
    self.count += 1


def replace(self, *_):
    self.level = tf.Variable(0.5)


def freeze(self, *_):
    self.model.layers[-1].trainable = False


def showing(**more):
    def compute_gradients(self, images, labels):
        gradients, scalars = TrainStep.compute_gradients(self, images, labels)
        return gradients, scalars | more

    return {"compute_gradients": compute_gradients}


def remember(*_):
    SEEN.append(len(SEEN))


CHANGES = {
    "a counter in an object": (keep(sampler=Sampler), ordering(lambda self: self.sampler()),
                               r"self\.sampler\.count changed in epoch_order from 0 to 1"),
    "a class attribute": (keep(count=Counter), ordering(lambda self: self.count()), r"Counter\.times changed in epoch"),
    "a module's list": (keep(), ordering(remember), r"SEEN changed in epoch_order from \[\] to \[0\]"),
    "a generator in a list": (keep(draws=lambda: [np.random.default_rng(0)]), {}, r"self\.draws\[0\] is a Generator"),
    "a generator function": (keep(_stream=lambda: (i for i in range(9))), {}, r"self\._stream is a generator"),
    "np.random in epoch_order": (keep(), ordering(lambda self: np.random.permutation(1500)),
                                 r"epoch_order of Own draws from np\.random.*default_rng\(\(self\.seed, epoch\)\)"),
    "tf.random": (keep(), ordering(lambda self: tf.random.shuffle(tf.range(1500))), r"draws from tf\.random,"),
    "of TensorFlow": (keep(), measuring(lambda *_: {"a": tf.random.get_global_generator().normal([])}),
                      r"draws from tf\.random\.get_global_generator"),
    "random traced": (keep(), preparing(lambda self: random.random()), "traced method of Own draws from random"),
    "a counter traced": (keep(count=0), preparing(add), r"self\.count changed while it was traced"),
    "a variable replaced": (keep(level=lambda: tf.Variable(1.0)), ordering(replace),
                            r"self\.level lost a tf\.Variable in epoch_order"),
    "a model for None": (keep(best=None), measuring(lambda self, *_: setattr(self, "best", keras.Sequential())),
                         r"self\.best changed in extra_metrics from None to Sequential"),
    "in a later epoch": (keep(count=0), ordering(lambda self: add(self) if int(self.iterations) else None),
                         r"self\.count changed in epoch_order from 0 to 1"),
    "a new variable": (keep(), ordering(lambda self: setattr(self, "late", tf.Variable(1.))),
                       r"self\.late got a tf\.Variable in epoch_order"),
    "a metric in an object": (keep(by=lambda: Holder(keras.metrics.Mean())),
                              measuring(lambda self, *_: self.by.of.update_state(3.0) and {}),
                              r"self\.by\.of\.variables\[0\] changed in extra_metrics from 0\.0 to 3\.0"),
    "in a function in a list": (keep(of=lambda: [[count_up]]), ordering(lambda self: self.of[0][0]()),
                                r"count_up\.times changed in epoch_order from 0 to 1"),
    "in a partial": (keep(of=lambda: functools.partial(count_up, 1)), measuring(lambda self, *_: self.of()),
                     r"count_up\.times changed in extra_metrics"),
    "in an inherited method": (keep(of=Heir), ordering(lambda self: self.of()), r"Counter\.times changed in epoch_or"),
    "a layer frozen": (keep(), measuring(freeze), r"self\.model.*trainable.* changed in extra_metrics from True"),
    "labels shuffled": (keep(), measuring(lambda self, y, x: np.random.default_rng(0).shuffle(y)),
                        r"extra_metrics of Own writes to an array .*test_seam_watch.py:\d+.*change a copy"),
    "tf.range of examples": (keep(), ordering(lambda self: tf.range(self.view.dataset.train)),
                             r"epoch_order of Own fails with \w+ \(test_seam_watch.py:\d+\)"),
    "nothing": (keep(), {"extra_metrics": lambda *_: None}, "extra_metrics returns None, expected a dict"),
    "a metric epoch": (keep(), measuring(lambda *_: {"epoch": 1}), "extra_metrics has a 'epoch', which the files"),
    "a metric by class": (keep(), measuring(lambda *_: {"by": [1, 2]}), r"'by' of shape \(2,\), expected a number"),
    "a scalar seconds": (keep(), showing(seconds=1.0), "the step has a scalar 'seconds'"),
    "a scalar as text": (keep(), showing(epochs="first"), "'epochs' is string .*expected a number"),
    "without logits": (keep(), {"extra_metrics": lambda self, x, y: {}}, "has to take images, labels and logits"),
    "an after_evaluation": (keep(), {"after_evaluation": lambda *_: 0.1}, "of Own returned 0.1, expected True or not"),
    "state traced": (lambda self: self.state.update(n=2.0), preparing(lambda self: self.state["n"]), r"reads self\.s"),
    "a tuple in state": (lambda self: self.state.update(a=[(1, 2)]), {}, r"self\.state\['a'\]\[0\] is a tuple, expec"),
    "an object in state": (keep(), ordering(lambda self: self.state.update(s=Sampler())), r"state\['s'\] is a Sampler"),
    "an array twice": (lambda self: self.state.update(a=(x := np.zeros(3)), b=[x[1:]]), {},
                       r"self\.state\['b'\]\[0\] is also self\.state\['a'\]"),
    "a masked array": (lambda self: self.state.update(m=np.ma.zeros(2)), {}, r"state\['m'\] is a MaskedArray"),
    "state replaced": (keep(state={}), {}, r"Own\.state replaces .* fill the dict"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_what_no_checkpoint_would_hold_is_refused_by_name(name, digits, tmp_path):
    setup, methods, match = CHANGES[name]
    SEEN.clear()
    count_up.times = Counter.times = 0
    is_refused(match, tmp_path / "run", digits, own(setup, **methods))
    fresh = data.load("digits").train
    assert all(np.array_equal(*arrays) for arrays in zip(fresh, digits.train, strict=True))


def fill(self):
    self.state.update(count=0, rng=np.random.default_rng(3), old=np.random.Generator(np.random.MT19937(1)))
    self.state.update(seen=np.zeros(3, np.float32), best={"of": [None, True, "a", float("inf")]}, last=np.int64(1))


def test_state_keeps_the_order_of_arrays_and_a_generator_with_a_key():
    state = {"f": np.arange(6.0).reshape(2, 3).T, "rng": np.random.Generator(np.random.Philox(key=[1, 2]))}
    state["rng"].integers(9)
    checkpoint.restore_state(again := {}, json.loads(json.dumps(checkpoint.dump_state(state))))
    assert again["f"].flags.f_contiguous
    assert np.array_equal(again["f"], state["f"])
    assert again["rng"].random() == state["rng"].random()


def draw_order(self, examples, epoch):
    state = self.state
    state["count"] += 1
    state["seen"][epoch] = state["rng"].random() + state["old"].random()
    state.setdefault("later", []).append(int(state["rng"].spawn(1)[0].integers(100)))
    state["last"] = state["last"] + np.int64(epoch)
    return state["rng"].permutation(len(examples.labels))


def count_epochs(self, entry):
    self.state["last"] += np.int64(entry["step"] % 3 == 0)  # three steps an epoch


def measure_state(self, images, labels, logits):
    state = self.state
    return {"count": state["count"], "seen": state["seen"].sum(), "later": sum(state["later"]), "last": state["last"]}


def test_the_state_of_hooks_is_saved_so_that_a_resume_is_exact(digits, tmp_path):
    cls = own(fill, epoch_order=draw_order, extra_metrics=measure_state, after_evaluation=count_epochs)
    straight, results = train(tmp_path / "straight", digits, cls, epochs=3, keep_best="max:validation_accuracy")
    for steps in (3, 4, None):  # an epoch, within an epoch, to the end
        options = {"epochs": 3, "max_steps": steps, "keep_best": "max:validation_accuracy"}
        resumed, again = train(tmp_path / "run", digits, cls, **options)
    names = [name for name in results if name.startswith(("validation_", "train_l", "test_", "best_"))]
    assert {name: again[name] for name in names} == {name: results[name] for name in names}
    for name in ("rng", "old"):
        assert resumed.state[name].random() == straight.state[name].random()
    assert type(resumed.state["last"]) is np.int64
    assert resumed.state["best"] == {"of": [None, True, "a", float("inf")]}


def read_all(self, examples, epoch):
    self.help()
    return np.arange(len(examples.labels)) + 0 * (weigh(RATE) + self._read + self.counter.times)


def test_what_hooks_read_of_modules_is_compared_wherever_they_import_it(digits, tmp_path, monkeypatch):
    for name in ("kit0", "kit1", "kit2"):
        (tmp_path / name).mkdir()
        code = f"{name.upper()} = 1\ndef order(n): return [i * {name.upper()} for i in range(n)]\n"
        (tmp_path / name / "sub.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    lines = ["import kit1.sub as s", "from kit2 import sub", "n = len(x.labels)", "kit0.sub.order(n), s.order(n)"]
    hook = f"import kit0.sub\ndef epoch_order(self, x, epoch): {'; '.join(lines)}; return sub.order(n)"
    exec(hook, scope := {"__name__": "hooks"})
    cls = own(epoch_order=scope["epoch_order"])
    train(tmp_path / "run", digits, cls, epochs=1)
    train(tmp_path / "run", digits, cls, epochs=2)
    for name in ("kit0", "kit1", "kit2"):
        with monkeypatch.context() as patch:
            patch.setattr(sys.modules[f"{name}.sub"], name.upper(), 2)
            is_refused(f"{name.upper()} was 1, is 2", tmp_path / "run", digits, cls, epochs=3)


def test_a_resume_with_other_code_or_values_of_hooks_is_refused(digits, tmp_path, monkeypatch):
    def cls(_read=1, _unread=1, help=lambda self: None):
        return own(keep(_read=_read, _unread=_unread), epoch_order=read_all, help=help, counter=Counter())

    train(tmp_path, digits, cls(), epochs=1)
    train(tmp_path, digits, cls(_unread=2), epochs=2)
    is_refused(r"self\._read was 1, is 2", tmp_path, digits, cls(_read=2), epochs=3)
    is_refused(r"the code of Own\.help", tmp_path, digits, cls(help=lambda self: print()), epochs=3)
    was = r"epoch_order\[0\].* was read_all, is draw_order; the code"
    is_refused(was, tmp_path, digits, own(epoch_order=draw_order), epochs=3)
    was = r"epoch_order was read_all, TrainStep\.epoch_order, is TrainStep\.epoch_order[,.;]"
    is_refused(was, tmp_path, digits, own(), epochs=3)
    for owner, name, value, match in (
        ("test_seam_watch", "RATE", 2, "RATE was 1, is 2"),
        ("test_seam_watch", "weigh", lambda x: x + 1, "the code of weigh"),
        ("test_seam_watch.Counter", "times", 7, r"Counter\.times was \d, is 7"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"{owner}.{name}", value)
            is_refused(match, tmp_path, digits, cls(), epochs=3)


CONFIG = Config(a=1.0)


class Legal(TrainStep):
    """A step that keeps tensors of the graph, a memo and a variable, and changes the learning rate."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.logits, self.parts, self.level, self._model = None, [], tf.Variable(0.0), keras.layers.Dense(3)
        self.config = Config(a=1)

    @functools.cached_property
    def order(self):
        return np.random.default_rng(self.seed).permutation(1500)

    def compute_loss(self, images, labels):
        loss, self.logits = super().compute_loss(images, labels)
        self.parts.append((self.logits, self.optimizer))
        return loss, self.logits

    def epoch_order(self, examples, epoch):
        self.level.assign_add(CONFIG.a * self.config.a)
        self.optimizer.learning_rate.assign(0.5 * self.optimizer.learning_rate)
        return self.order

    def extra_metrics(self, images, labels, logits):
        metric = keras.metrics.SparseCategoricalAccuracy()
        metric.update_state(labels, logits)
        return {"level": self.level, "shuffled": tf.random.stateless_uniform([], [1, 2]), "same": metric.result()}


def test_what_a_resume_continues_exactly_is_not_refused(digits, tmp_path):
    straight, results = train(tmp_path / "straight", digits, Legal, epochs=3)
    for epochs in (1, 3):
        resumed, again = train(tmp_path / "run", digits, Legal, epochs=epochs)
    assert results["validation_level"] == again["validation_level"] == 3
    assert checkpoint.digest(checkpoint.variables_of(resumed)) == checkpoint.digest(checkpoint.variables_of(straight))


def test_an_object_of_an_installed_library_may_count(digits, tmp_path, monkeypatch):
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "progress.py").write_text("class Bar:\n    n = 0\n    def up(self): self.n += 1\n")
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    bar = importlib.import_module("progress").Bar
    step, _ = train(tmp_path / "run", digits, own(keep(bar=bar), **ordering(lambda self: self.bar.up())))
    assert step.bar.n == 2
