"""TensorBoard's tabs: HParams with a row for each run, Projector with the features of some images, and Graphs."""

import collections
import colorsys
import contextlib
import math
import os
import re
import tempfile

from mnist import files
from mnist.metrics import is_lower_better
from mnist.model import features_of
from mnist.settings import settings_of, values_of

import numpy as np
import tensorflow as tf
from absl import logging
from PIL import Image
from tensorboard.plugins import projector
from tensorboard.plugins.hparams import api

# A resumed run replaces this file. TensorBoard reads event files in the order of their names, so that it reads this
# one first, and only once.
_HPARAMS_FILE = "events.out.tfevents.0.hparams"
_MAX_IMAGES = 1000  # in the Projector tab


def hparams_of(step, plan):
    """Returns the hyperparameters of a `TrainStep` and a `Plan`: a dict from names to `(value, default)`."""
    values = {"optimizer": (type(step.optimizer).__name__.lower(), "adam"), "seed": (step.seed, 0)}
    rate = step.optimizer.get_config().get("learning_rate")  # a float32 number, or the config of a schedule
    rate = float(str(np.float32(rate))) if isinstance(rate, float) else (rate or {}).get("class_name")
    values["learning_rate"] = (rate, 1e-3)
    for part in (plan, step):
        now = values_of(part)
        for name, setting in settings_of(type(part)).items():
            if not setting.may_change or setting.group == "length":
                values[name] = (now[name], setting.plain(setting.default))
    return values


def trial_name(values, workdir):
    """Returns the name of a run's row: its folder and its other values than defaults, `first learning_rate=0.01`."""
    different = [f"{name}={_plain(value)}" for name, (value, default) in values.items() if value != default]
    folder = os.path.basename(os.path.abspath(workdir))
    return " ".join([*([] if folder in different else [folder]), *different])  # a sweep names folders by a value


def write_hparams(folder, values, workdir):
    """Writes the row of a run to the `folder` of its event files: its name and its hyperparameters.

    `values` holds a pair `(value, default)` for each name. The name of the row begins with the folder `workdir`.
    """
    shown = {name: _plain(value) for name, (value, _) in values.items() if value is not None}
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        writer = tf.summary.create_file_writer(temporary)
        with contextlib.closing(writer), writer.as_default(step=0):
            api.hparams(shown, trial_id=trial_name(values, workdir))
        files.replace(os.path.join(temporary, *os.listdir(temporary)), os.path.join(folder, _HPARAMS_FILE))


def _plain(value):
    """Returns a value as the HParams tab accepts it: a number, a bool or a text."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (tuple, list)):
        return ",".join(map(str, value))
    return value if isinstance(value, (bool, int, float)) else str(value)


def columns_of(results, history):
    """Returns the metrics of the row, a dict of finite numbers: test, last and best validation, seconds of training.

    A metric whose name does not show whether the lowest value is the best has no best. `results` is the content of
    `results.json`, and `history` the content of `metrics.jsonl`.
    """
    found = {name: value for name, value in results.items() if name.startswith(("test_", "validation_"))}
    for name in [name for name in history[-1] if name.startswith("validation_")]:
        values = [entry[name] for entry in history if math.isfinite(entry.get(name, math.nan))]
        if values and (lower := is_lower_better(name)) is not None:
            found[f"best_{name}"] = (min if lower else max)(values)
    found["train_seconds"] = results["train_seconds"]
    return {name: value for name, value in found.items() if math.isfinite(value)}


def write_features(folder, model, examples, classes):
    """Writes features, labels and pictures of the first 1,000 `data.Examples` for the Projector tab.

    Writes to `features` in a folder of event files, and nothing if the model has no features.
    """
    images, labels = (array[:_MAX_IMAGES] for array in examples)
    try:
        features = features_of(model, images)
    except Exception as error:  # a user's method must not fail a run at its end
        logging.warning("The Projector tab stays empty: features() of the model raised %s", error)
        return
    if features is None:
        return
    os.makedirs(os.path.join(folder, "features"), exist_ok=True)
    config = projector.ProjectorConfig()
    embedding = config.embeddings.add()
    embedding.tensor_name = f"features of {len(labels):,} validation images"
    embedding.tensor_path, embedding.metadata_path = "features/features.tsv", "features/labels.tsv"
    embedding.sprite.image_path = "features/images.png"
    embedding.sprite.single_image_dim.extend(images.shape[1:3])
    np.savetxt(os.path.join(folder, embedding.tensor_path), features, "%.5g", delimiter="\t")
    with open(os.path.join(folder, embedding.metadata_path), "w", encoding="utf-8") as file:
        file.write("".join(f"{classes[label]}\n" for label in labels))
    _draw_sprite(images, labels, len(classes)).save(os.path.join(folder, embedding.sprite.image_path))
    projector.visualize_embeddings(folder, config)


def _draw_sprite(images, labels, num_classes):
    """Draws all images row by row as a square, each in the colour of its label on white."""
    count, height, width, _ = images.shape
    # Hues differ between classes, and neighbours differ in lightness. The tab itself opens without colours.
    inks = [colorsys.hls_to_rgb(i / num_classes, 0.45 if i % 2 else 0.35, 0.9) for i in range(num_classes)]
    shares = images / 255 * (1 - np.array(inks)[labels][:, np.newaxis, np.newaxis])  # [N, height, width, 3]
    side = math.ceil(math.sqrt(count))
    grid = np.full((side * side, height, width, 3), 255, np.uint8)
    grid[:count] = np.rint(255 * (1 - shares))
    grid = grid.reshape(side, side, height, width, 3).swapaxes(1, 2)
    return Image.fromarray(grid.reshape(side * height, side * width, 3))


def readable_graph(graph):
    """Renames the operations of a graph, so that TensorBoard groups them by the name scopes of the step.

    Returns: a `GraphDef` in which every operation except the inputs has a scope.
    """
    definition = graph.as_graph_def()
    scopes = {scope for node in definition.node for scope in node.name.split("/")[:-1]}
    # Keras opens the scope of a layer twice, so that cnn_1 belongs to cnn, unless a cnn_3 shows that there are two.
    bases = collections.Counter(re.sub(r"_\d+$", "", scope) for scope in scopes)

    def rename(name):
        parts = re.sub("^gradient_tape/(loss/)?", "gradients/", name).split("/")
        for i, part in enumerate(parts[:-1]):
            base = re.sub(r"_\d+$", "", part)
            parts[i] = base if bases[base] == 1 else part
        return "/".join(parts if len(parts) > 1 or parts[0] in ("images", "labels") else ["outputs", *parts])

    for node in definition.node:
        node.name = rename(node.name)
        for i, source in enumerate(node.input):
            control, name, output = re.fullmatch(r"(\^?)([^:]*)(.*)", source).groups()
            node.input[i] = f"{control}{rename(name)}{output}"
    return definition
