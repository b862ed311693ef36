"""TensorBoard's Projector tab: the features of some validation images, coloured by label, each shown as it is."""

import colorsys
import os

from mnist.model import features_of

import numpy as np
from absl import logging
from PIL import Image
from tensorboard.plugins import projector

IMAGES = 1000
_FOLDER = "features"


def write(folder, model, examples, classes):
    """Writes features, labels and pictures of the first 1,000 images to `<folder>/features`.

    Args:
      folder: of event files.
      model: the evaluated model. Nothing is written if its features are not to be had, see `features_of`.
      examples: the validation images and labels.
      classes: the names of the classes.
    """
    images, labels = (array[:IMAGES] for array in examples)
    try:
        features = features_of(model, images)
    except Exception as error:  # of a method that is anybody's, at the end of a run
        logging.warning("The Projector tab stays empty: features() of the model raised %s", error)
        features = None
    if features is None:
        return
    os.makedirs(os.path.join(folder, _FOLDER), exist_ok=True)
    config = projector.ProjectorConfig()
    embedding = config.embeddings.add()
    embedding.tensor_name = f"features of {len(labels):,} validation images"
    embedding.tensor_path, embedding.metadata_path = f"{_FOLDER}/features.tsv", f"{_FOLDER}/labels.tsv"
    embedding.sprite.image_path = f"{_FOLDER}/images.png"
    embedding.sprite.single_image_dim.extend(images.shape[1:3])
    np.savetxt(os.path.join(folder, embedding.tensor_path), features, "%.5g", delimiter="\t")
    with open(os.path.join(folder, embedding.metadata_path), "w", encoding="utf-8") as file:
        file.write("".join(f"{classes[label]}\n" for label in labels))
    _sprite(images, labels, len(classes)).save(os.path.join(folder, embedding.sprite.image_path))
    projector.visualize_embeddings(folder, config)


def _sprite(images, labels, num_classes):
    """All images in one, a square of them, row by row; on white, as the tab is, each in the colour of its label."""
    count, height, width, _ = images.shape
    # The colours differ in hue, and neighbours in lightness; the tab itself opens without any.
    inks = [colorsys.hls_to_rgb(i / num_classes, 0.45 if i % 2 else 0.35, 0.9) for i in range(num_classes)]
    shares = images / 255 * (1 - np.array(inks)[labels][:, np.newaxis, np.newaxis])  # [N, height, width, 3]
    side = int(np.ceil(np.sqrt(count)))
    grid = np.full((side * side, height, width, 3), 255, np.uint8)
    grid[:count] = np.rint(255 * (1 - shares))
    grid = grid.reshape(side, side, height, width, 3).swapaxes(1, 2)
    return Image.fromarray(grid.reshape(side * height, side * width, 3))
