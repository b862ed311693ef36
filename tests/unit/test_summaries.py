"""A TensorBoard server shows each step of a run once, although the run was stopped and resumed."""

import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

from mnist import data
from mnist.loop import Interrupted, train_and_evaluate
from mnist.model import CNN
from mnist.step import TrainStep

import keras
import numpy as np
import pytest
from conftest import Calling, nightly_but
from PIL import Image

STEPS = 48
RATE = keras.optimizers.schedules.PolynomialDecay(1e-3, STEPS, 0.0)  # a different rate at each step
LAYERS = ("conv1", "conv2", "conv3", "dense1", "logits")


@pytest.fixture(scope="module")
def logdir(tmp_path_factory):
    """A run killed before its first checkpoint, under a clock a day ahead, and ahead of its last checkpoint."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    digits = data.load("digits")

    def train(stop_at=STEPS + 1):
        keras.utils.set_random_seed(0)
        step = TrainStep(CNN(), keras.optimizers.Adam(RATE), seed=0)
        options = {"epochs": 2, "steps_per_loop": 5, "norms_every": 5, "keep_best": "validation_loss"}
        flags_text, interrupt = "--seed=0\n--dry_run=false\n", Calling(lambda: int(step.iterations) >= stop_at)
        try:
            train_and_evaluate(step, digits, str(workdir), flags_text=flags_text, interrupt=interrupt, **options)
        except Interrupted:
            return int(step.optimizer.iterations)

    train(stop_at=5)
    shutil.rmtree(workdir / "checkpoints")
    train(stop_at=10)
    for path in sorted(workdir.glob("*/events*")):
        head, stamp, tail = re.fullmatch(r"(.*tfevents\.)(\d+)(.*)", path.name).groups()
        path.rename(path.with_name(f"{head}{int(stamp) + 86400}{tail}"))
    last = train(stop_at=29)
    for path in (workdir / "checkpoints").glob(f"ckpt-{last}.*"):  # kill -9 leaves event files ahead of checkpoints
        path.unlink()
    train()
    return str(workdir.parent)


@pytest.fixture(scope="module", params=nightly_but(["true"], ["true", "false"]))
def server(request, logdir):
    """Starts a TensorBoard server. Returns: a function from a path and a query to the bytes of the answer."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", logdir, "--port=0", f"--load_fast={request.param}"]
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
                if points(get, "scalars", "train", "epoch/loss")[-1][1] == STEPS:
                    break
            except (urllib.error.HTTPError, IndexError):
                pass
            time.sleep(0.2)
        yield get
    finally:
        process.terminate()
        process.wait()
        log.close()


def points(server, plugin, part, tag):
    """Returns the points of a curve or of histograms: lists of seconds, step and value."""
    return json.loads(server(f"plugin/{plugin}/{plugin}", run=f"run/{part}", tag=tag))


def test_every_scalar_has_each_step_once(server):
    tags = json.loads(server("plugin/scalars/tags"))
    shared = {"epoch/loss", "epoch/accuracy"}
    norms = {f"{part}/{layer}" for part in ("gradients", "weights", "updates") for layer in (*LAYERS, "all layers")}
    batch = {"batch/loss", "batch/accuracy", "rates/learning_rate"}
    assert tags["run/train"].keys() == shared | batch | norms | {"speed/images_per_second"}
    metrics = [f"{part}_{name}" for part in ("test", "validation", "best_validation") for name in ("loss", "accuracy")]
    results = {f"results/{name}" for name in (*metrics, "train_seconds")}
    assert tags["run/validation"].keys() == shared | results | {"speed/evaluated_images_per_second"}
    # TensorBoard opens the first two sections by itself.
    assert sorted({tag.partition("/")[0] for run in tags.values() for tag in run})[:2] == ["batch", "epoch"]
    for part in ("train", "validation"):
        expected = {
            **dict.fromkeys(batch, tuple(range(1, STEPS + 1))),
            **dict.fromkeys(norms, tuple(range(5, STEPS + 1, 5))),
            **dict.fromkeys(shared, (24, 48) if part == "train" else (0, 24, 48)),
            **dict.fromkeys(results, (48,)),
        }
        for tag in tags[f"run/{part}"]:
            steps = tuple(step for _, step, _ in points(server, "scalars", part, tag))
            assert steps == expected.get(tag, tuple(sorted(set(steps)))), (part, tag)


def test_each_variable_and_its_gradient_have_histograms(server):
    for plugin in ("histograms", "distributions"):
        tags = json.loads(server(f"plugin/{plugin}/tags"))["run/train"]
        names = {f"{layer}/{name}" for layer in LAYERS for name in ("kernel", "bias")}
        assert tags.keys() == {f"{part}/{name}" for part in ("weights", "gradients") for name in names}
        assert [step for _, step, _ in points(server, plugin, "train", "weights/conv2/kernel")] == [24, 48]
    *_, buckets = points(server, "histograms", "train", "gradients/conv2/kernel")[-1]
    assert sum(count for _, _, count in buckets) == pytest.approx(3 * 3 * 32 * 64)


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
    assert np.ptp(colour) > 50  # the colour of its label, not grey
    np.testing.assert_allclose(tile, 255 - ink * (255 - colour), atol=1)


def test_the_hparams_tab_has_a_row_for_the_run(server):
    statuses = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_RUNNING"]
    request = json.dumps({"startIndex": 0, "sliceSize": 9, "allowedStatuses": statuses})
    (row,) = json.loads(server("plugin/hparams/session_groups", request=request))["sessionGroups"]
    assert row["name"] == "run dataset=digits learning_rate=PolynomialDecay epochs=2"
    assert [session["name"] for session in row["sessions"]] == ["run/validation"]
    assert (row["hparams"]["epochs"], row["hparams"]["optimizer"]) == (2, "adam")
    assert {"results/test_accuracy", "results/best_validation_loss"} <= {m["name"]["tag"] for m in row["metricValues"]}
    experiment = json.loads(server("plugin/hparams/experiment", request="{}"))
    types = {info["name"]: info["type"] for info in experiment["hparamInfos"]}
    assert (types["optimizer"], types["seed"]) == ("DATA_TYPE_STRING", "DATA_TYPE_FLOAT64")


def test_the_learning_rate_is_the_rate_of_each_step(server):
    rates = [rate for _, _, rate in points(server, "scalars", "train", "rates/learning_rate")]
    # A graph may round the last bit of 1e-3 otherwise, 1.2e-10. Neighbouring steps are 2e-5 apart.
    np.testing.assert_allclose(rates, [RATE(i).numpy() for i in range(STEPS)], rtol=0, atol=1e-9)


def test_the_text_files_have_each_evaluation_once(logdir):
    run = pathlib.Path(logdir) / "run"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["epoch"]) for line in lines] == [(0, 0), (24, 1), (48, 2)]
    assert lines[0].keys() == {"step", "epoch", "seconds", "validation_loss", "validation_accuracy"}
    assert 0 == lines[0]["seconds"] < lines[1]["seconds"] < lines[2]["seconds"]
    results = json.loads((run / "results.json").read_text())
    assert {name: results[name] for name in lines[2] if "_" in name} == {k: v for k, v in lines[2].items() if "_" in k}
