"""The accuracy of a model on slightly changed images, as with MNIST-C (Mu & Gilmer, arXiv:1906.02337).

Pixels that move in from outside repeat the edge, so that black paper stays black and white paper stays white.
"""

import functools
from typing import NamedTuple

from mnist.metrics.predictions import compute_metrics

import numpy as np
import scipy  # loads ndimage at its first use, because training does without


class Corruption(NamedTuple):
    """One kind of change at one strength."""

    name: str
    size: float
    unit: str
    versions: tuple  # functions from uint8 [N, 28, 28, 1] to the same, with equal weight

    def __str__(self):
        return f"{self.name} {self.size:g} {self.unit}" if self.unit else self.name


def shift(images, rows, columns):
    """Moves images, uint8 `[N, 28, 28, 1]`, by whole pixels down and to the right."""
    return scipy.ndimage.shift(images, (0, rows, columns, 0), order=0, mode="nearest")


def rotate(images, degrees):
    """Turns images, uint8 `[N, 28, 28, 1]`, counterclockwise around their centre, with bilinear interpolation."""
    turned = scipy.ndimage.rotate(
        images, degrees, axes=(1, 2), reshape=False, output=np.float32, order=1, mode="nearest"
    )
    return _to_uint8(turned)


def add_noise(images, deviation):
    """Adds Gaussian noise to images, uint8 `[N, 28, 28, 1]`. Its deviation is a share of the range 0 to 255.

    The draws are the same at each call, so that two models are compared on the same images.
    """
    draws = np.random.default_rng(0).standard_normal(images.shape, np.float32)
    return _to_uint8(images + np.float32(255 * deviation) * draws)


def blur(images, sigma):
    """Blurs images, uint8 `[N, 28, 28, 1]`, with a Gaussian of `sigma` pixels."""
    return _to_uint8(scipy.ndimage.gaussian_filter(images, (0, sigma, sigma, 0), output=np.float32, mode="nearest"))


def _to_uint8(images):
    return np.clip(np.rint(images), 0, 255).astype(np.uint8)


def _make_corruptions():
    yield Corruption("clean", 0, "", (lambda images: images,))
    for n in (1, 2, 3):  # down, up, right, left
        ways = ((n, 0), (-n, 0), (0, n), (0, -n))
        versions = tuple(functools.partial(shift, rows=rows, columns=columns) for rows, columns in ways)
        yield Corruption("shift", n, "px", versions)
    for n in (10, 20, 30):  # in both directions
        yield Corruption("rotation", n, "degrees", tuple(functools.partial(rotate, degrees=way) for way in (n, -n)))
    for n in (0.1, 0.2, 0.4):
        yield Corruption("noise", n, "of the range", (functools.partial(add_noise, deviation=n),))
    for n in (0.5, 1, 1.5):
        yield Corruption("blur", n, "px", (functools.partial(blur, sigma=n),))


CORRUPTIONS = tuple(_make_corruptions())


def measure_robustness(predict_logits, images, labels):
    """Evaluates a function of `model.make_predict_logits` on uint8 images `[N, 28, 28, 1]` under all `CORRUPTIONS`.

    Returns: a list of dicts: `corruption`, its `size` and `unit`, and the means of `loss` and `accuracy` over its
      versions.
    """
    rows = []
    for corruption in CORRUPTIONS:
        found = [compute_metrics(predict_logits(version(images)).numpy(), labels) for version in corruption.versions]
        means = {name: float(np.mean([metrics[name] for metrics in found])) for name in ("loss", "accuracy")}
        rows.append({"corruption": corruption.name, "size": corruption.size, "unit": corruption.unit} | means)
    return rows
