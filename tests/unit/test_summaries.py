"""What a real TensorBoard server shows of a run that was stopped and resumed."""

import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request

from mnist import data
from mnist.loop import Interrupted, train_and_evaluate
from mnist.model import CNN
from mnist.run import Plan
from mnist.step import TrainStep, compile_step
from mnist.summaries import hparams
from mnist.summaries.event_files import _drawn

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

STEPS = 48
RATE = keras.optimizers.schedules.PolynomialDecay(1e-3, STEPS, 0.0)  # another at each step


class StopOnce:
    signum = None


@pytest.fixture(scope="module")
def logdir(tmp_path_factory):
    """A run killed before its first checkpoint, after a loop, and after summaries that no checkpoint covers.

    Its first two processes had a clock that was a day ahead.
    """
    workdir = tmp_path_factory.mktemp("runs") / "run"
    digits = data.load("digits")

    def train(stop_at=None, lose_checkpoint=False):
        keras.utils.set_random_seed(0)
        step = TrainStep(CNN(), keras.optimizers.Adam(RATE), seed=0)
        interrupt = StopOnce()
        if stop_at:

            class Interrupt:
                @property
                def signum(self):
                    return 15 if int(step.optimizer.iterations) >= stop_at else None

            interrupt = Interrupt()
        try:
            train_and_evaluate(
                step,
                digits,
                str(workdir),
                epochs=2,
                steps_per_loop=5,
                interrupt=interrupt,
                flags_text="--seed=0\n--dry_run=false\n",
                norms_every=5,
                keep_best="validation_loss",
            )
        except Interrupted:
            if lose_checkpoint:
                for path in (workdir / "checkpoints").glob(f"ckpt-{int(step.optimizer.iterations)}.*"):
                    path.unlink()

    def set_clock_ahead():
        for path in sorted(workdir.glob("*/events*")):
            head, stamp, tail = re.fullmatch(r"(.*tfevents\.)(\d+)(.*)", path.name).groups()
            path.rename(path.with_name(f"{head}{int(stamp) + 86400}{tail}"))

    train(stop_at=5)
    shutil.rmtree(workdir / "checkpoints")
    train(stop_at=10)
    set_clock_ahead()
    train(stop_at=29, lose_checkpoint=True)  # as after kill -9: event files ahead of checkpoints
    train()
    return str(workdir.parent)


@pytest.fixture(scope="module", params=["true", "false"])
def server(request, logdir, python):
    """A TensorBoard server on a free port; `get(path, **query)` returns what it answers."""
    command = [python, "-m", "tensorboard.main", "--logdir", logdir, "--port=0", f"--load_fast={request.param}"]
    log = open(os.path.join(logdir, f"tensorboard-{request.param}.log"), "w+")  # noqa: SIM115
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        url, deadline = None, time.time() + 60
        while not url and time.time() < deadline:
            time.sleep(0.2)
            log.seek(0)
            url = next((w for w in log.read().split() if w.startswith("http://")), None)

        def get(path, **query):
            with urllib.request.urlopen(f"{url}data/{path}?{urllib.parse.urlencode(query)}".rstrip("?")) as answer:
                return answer.read()

        while time.time() < deadline:  # until the event files are read
            try:
                scalars = json.loads(get("plugin/scalars/scalars", run="run/train", tag="epoch/loss"))
                if scalars[-1][1] == STEPS:
                    break
            except (urllib.error.HTTPError, IndexError):
                pass
            time.sleep(0.2)
        yield get
    finally:
        process.terminate()
        process.wait()
        log.close()


LAYERS = ("conv1", "conv2", "conv3", "dense1", "logits")


def test_every_scalar_has_each_step_once(server):
    tags = json.loads(server("plugin/scalars/tags"))
    shared = {"epoch/loss", "epoch/accuracy"}
    norms = {f"{part}/{layer}" for part in ("gradients", "weights", "updates") for layer in (*LAYERS, "all layers")}
    batch = {"batch/loss", "batch/accuracy", "rates/learning_rate"}
    assert tags["run/train"].keys() == shared | batch | norms | {"speed/images_per_second"}
    names = [
        f"{part}_{metric}" for part in ("test", "validation", "best_validation") for metric in ("loss", "accuracy")
    ]
    results = {f"results/{name}" for name in (*names, "train_seconds")}
    assert tags["run/validation"].keys() == shared | results | {"speed/evaluated_images_per_second"}
    # The first two sections open by themselves.
    assert sorted({tag.partition("/")[0] for run in tags.values() for tag in run})[:2] == ["batch", "epoch"]
    for run, names in tags.items():
        for tag in names:
            points = json.loads(server("plugin/scalars/scalars", run=run, tag=tag))
            steps = [step for _, step, _ in points]
            assert steps == sorted(set(steps)), (run, tag, steps)
            if tag in batch:
                assert steps == list(range(1, STEPS + 1))
            if tag in norms:
                assert steps == list(range(5, STEPS + 1, 5))
            if tag in shared:
                assert steps == ([24, 48] if run == "run/train" else [0, 24, 48])
            if tag in results:
                assert steps == [48]


def test_pictures_curves_texts_and_graph_are_there(server):
    tags = json.loads(server("plugin/images/tags"))
    pictures = {f"images/{name}" for name in ("confusion_matrix", "worst_mistakes", "accuracy_by_class", "first_layer")}
    assert {run: set(found) for run, found in tags.items()} == {"run/validation": pictures}
    for tag in pictures:
        entries = json.loads(server("plugin/images/images", run="run/validation", tag=tag, sample=0))
        assert [entry["step"] for entry in entries] == [0, 24, 48]
        image = server("plugin/images/individualImage?" + entries[-1]["query"])
        width, height = Image.open(io.BytesIO(image)).size
        assert 250 < width <= 350  # what the card shows pixel by pixel
        assert height < 600
    assert json.loads(server("plugin/pr_curves/tags"))["run/validation"].keys() == {f"pr_curves/{i}" for i in range(10)}
    curves = json.loads(server("plugin/pr_curves/pr_curves", run="run/validation", tag="pr_curves/3"))["run/validation"]
    assert [curve["step"] for curve in curves] == [0, 24, 48]
    assert curves[-1]["recall"][0] == 1
    assert set(json.loads(server("plugin/text/tags"))["run/train"]) == {
        *("run/flags", "run/model", "run/dataset", "run/provenance")
    }
    for tag, part in (
        ("flags", "<td><code>0</code></td>"),
        ("flags", "<td><code>false</code></td>"),
        ("model", "93,322"),
        ("provenance", "git_revision"),
    ):
        (text,) = json.loads(server("plugin/text/text", run="run/train", tag=f"run/{tag}"))
        assert part in text["text"]
    graph = server("plugin/graphs/graph", run="run/train").decode()
    assert "SoftmaxCrossEntropyWithLogits" in graph
    names = set(re.findall(r'name: "([^"/]+)', graph))
    assert {"prepare_batch", "loss", "gradients", "optimizer", "metrics"} <= names
    assert '"loss/cnn/conv1/' in graph
    assert '"gradients/cnn/conv1/' in graph
    assert "cnn_1" not in graph
    loose = {name for name in names if not re.search(rf'name: "{name}/', graph)}
    assert all(re.search(rf'name: "{name}"\n  op: "Placeholder"', graph) for name in loose), loose  # what comes in


def test_histograms_of_each_variable_and_its_gradient_are_there(server):
    for plugin in ("histograms", "distributions"):
        tags = json.loads(server(f"plugin/{plugin}/tags"))["run/train"]
        assert tags.keys() == {
            f"{part}/{layer}/{name}"
            for part in ("weights", "gradients")
            for layer in LAYERS
            for name in ("kernel", "bias")
        }
        points = json.loads(server(f"plugin/{plugin}/{plugin}", run="run/train", tag="weights/conv2/kernel"))
        assert [step for _, step, _ in points] == [24, 48]
    points = json.loads(server("plugin/histograms/histograms", run="run/train", tag="gradients/conv2/kernel"))
    assert sum(count for _, _, count in points[-1][2]) == pytest.approx(3 * 3 * 32 * 64)


def test_the_projector_has_features_labels_and_pictures(server):
    assert json.loads(server("plugin/projector/runs")) == ["run/validation"]
    (info,) = json.loads(server("plugin/projector/info", run="run/validation"))["embeddings"]
    assert info["tensorName"] == "features of 297 validation images"
    name = {"run": "run/validation", "name": info["tensorName"]}
    assert len(server("plugin/projector/tensor", **name)) == 297 * 64 * 4
    labels = server("plugin/projector/metadata", **name).decode().splitlines()
    digits = data.load("digits").validation
    assert labels == [str(label) for label in digits.labels]
    sprite = np.asarray(Image.open(io.BytesIO(server("plugin/projector/sprite_image", **name))))
    assert sprite.shape == (18 * 28, 18 * 28, 3)
    tile = sprite[28:56, 28:56].astype(float)
    ink = digits.images[19] / 255  # [28, 28, 1]
    colour = tile[np.unravel_index(ink.argmax(), ink.shape)[:2]]
    assert np.ptp(colour) > 50  # one of its label, not grey
    np.testing.assert_allclose(tile, 255 - ink * (255 - colour), atol=1)


def test_the_run_is_a_row_of_the_hparams_tab(server):
    question = {
        "startIndex": 0,
        "sliceSize": 9,
        "allowedStatuses": ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_RUNNING"],
    }
    (row,) = json.loads(server("plugin/hparams/session_groups", request=json.dumps(question)))["sessionGroups"]
    assert row["name"] == "run dataset=digits learning_rate=PolynomialDecay epochs=2"
    assert [session["name"] for session in row["sessions"]] == ["run/validation"]
    assert (row["hparams"]["epochs"], row["hparams"]["optimizer"]) == (2, "adam")
    assert {"results/test_accuracy", "results/best_validation_loss"} <= {m["name"]["tag"] for m in row["metricValues"]}


def test_the_row_of_a_notebooks_run_has_the_rate_as_it_was_typed():
    values = hparams.of(TrainStep(CNN(), keras.optimizers.Adam(3e-3)), Plan(100, batch_size=10))
    assert values["learning_rate"] == (0.003, 0.001)
    assert hparams.trial_name(values, "runs/first") == "first learning_rate=0.003 batch_size=10"


def test_no_two_operations_have_one_name_in_the_graph_that_is_drawn():
    class Twice(TrainStep):
        def compute_loss(self, images, labels):
            self.model(images)
            return super().compute_loss(images, labels)

    spec = [tf.TensorSpec([None, 28, 28, 1], tf.uint8), tf.TensorSpec([None], tf.uint8)]
    drawn = _drawn(compile_step(Twice(CNN(), keras.optimizers.Adam())).get_concrete_function(*spec).graph)
    names = [node.name for node in drawn.node]
    assert len(names) == len(set(names))
    assert {re.sub(r"\^|:.*", "", source) for node in drawn.node for source in node.input} <= set(names)
    assert {"loss/cnn_1", "loss/cnn_3"} <= {"/".join(name.split("/")[:2]) for name in names}


def test_the_learning_rate_is_that_of_the_step_itself(server):
    points = json.loads(server("plugin/scalars/scalars", run="run/train", tag="rates/learning_rate"))
    assert [step for _, step, _ in points] == list(range(1, STEPS + 1))
    # A graph may round the last bit of 1e-3 otherwise, 1.2e-10; neighbouring steps are 2e-5 apart.
    np.testing.assert_allclose(
        [rate for _, _, rate in points], [RATE(i).numpy() for i in range(STEPS)], rtol=0, atol=1e-9
    )


def test_the_text_files_have_each_evaluation_once(logdir):
    run = pathlib.Path(logdir) / "run"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["epoch"]) for line in lines] == [(0, 0), (24, 1), (48, 2)]
    assert lines[0].keys() == {"step", "epoch", "seconds", "validation_loss", "validation_accuracy"}
    assert 0 == lines[0]["seconds"] < lines[1]["seconds"] < lines[2]["seconds"]
    results = json.loads((run / "results.json").read_text())
    assert {name: results[name] for name in lines[2] if "_" in name} == {k: v for k, v in lines[2].items() if "_" in k}
