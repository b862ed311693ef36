"""The look of a run's training images, and how unlike them another image is."""

from typing import NamedTuple

import numpy as np

_COPY = 0.01  # an image at a smaller distance is a copy
_KEPT = 1000  # training images for the distance, and as many further ones for the distance that is usual
_MEASURED = 300  # training images whose strokes are measured


class Look(NamedTuple):
    """The look of training images: their paper, their frame, and up to 1,000 of them at half the resolution.

    A checkpoint holds these arrays, so that no command needs the data.
    """

    paper: np.ndarray  # float, the grey level of the empty background, or the mean level if there is no background
    ink: np.ndarray  # float, the grey level of full ink, 0 or 255, or -1 without an empty background
    side: np.ndarray  # float, pixels of the longer side of the ink
    by_mass: np.ndarray  # bool, whether the centre of mass is in the middle, else the centre of the box
    pen: np.ndarray  # float [3], the width of strokes in pixels: quantiles 2 %, 50 %, 98 %
    examples: np.ndarray  # uint8 [M, 14, 14], images at half the resolution
    usual: np.ndarray  # float, the distance that 99 % of further training images have at most

    @classmethod
    def of(cls, images):
        """Computes the look of training images, uint8 `[N, 28, 28, 1]`, from at most 2,000 of them."""
        chosen = np.random.default_rng(0).permutation(len(images))[: 2 * _KEPT]  # data may be sorted by class
        images = images[chosen, ..., 0]
        paper, ink = _find_paper(images)
        frame = 0.0, False, np.zeros(3)
        if ink >= 0:
            frame = _measure_frame(np.abs(images.astype(np.float32) - paper))
        look = cls(*map(np.float32, (paper, ink, *frame)), _shrink(images[::2]), np.float32(1))
        held = images[1::2] if len(images) > 1 else images
        distances = look.unlike(held)
        distances = distances[distances > _COPY]
        return look._replace(usual=np.float32(np.quantile(distances, 0.99) if len(distances) else 1))

    @property
    def resolution(self):
        """The side of the images in pixels."""
        return 2 * self.examples.shape[1]

    def is_inked(self):
        """Returns whether the images show ink on an empty background."""
        return self.ink >= 0

    def unlike(self, images):
        """Returns how unlike the training images other images are.

        Args:
          images: uint8 `[N, 28, 28]`.

        Returns: floats `[N]`, the distance to the nearest of them. 1 % of the training images are beyond 1.
        """
        return self._distances(images).min(axis=1) / self.usual

    def _distances(self, images):
        here, there = (self._describe(small) for small in (_shrink(images), self.examples))
        squares = (here**2).sum(1)[:, np.newaxis] + (there**2).sum(1) - 2 * here @ there.T
        return np.sqrt(np.maximum(squares, 0))

    def _describe(self, small):
        """Describes small images by their direction, and with less weight by their contrast."""
        levels = (small.reshape(len(small), -1) - self.paper) / np.float32(255)
        norms = np.maximum(np.linalg.norm(levels, axis=1, keepdims=True), 1e-2)
        return np.concatenate([levels / norms, 0.3 * np.log(norms)], axis=1)


def _shrink(images):
    """Blurs images `[N, 28, 28]`, so that a shift of a pixel changes little, and halves their sides."""
    count, height, width = images.shape
    padded = np.pad(images.astype(np.float32), ((0, 0), (1, 1), (1, 1)), "edge")
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    blurred = (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]) / 9
    return np.rint(blurred.reshape(count, height // 2, 2, width // 2, 2).mean((2, 4))).astype(np.uint8)


def _find_paper(images):
    """Returns the grey levels of an empty background and of the ink on it, or the mean level and -1."""
    ring = np.concatenate([images[:, [0, -1]].ravel(), images[:, :, [0, -1]].ravel()])
    paper = int(np.bincount(ring, minlength=256).argmax())
    empty = np.abs(images.astype(np.int16) - paper) <= 8
    if empty.mean() < 0.3:
        return images.mean(), -1
    return paper, 255 if paper < 128 else 0


def _measure_frame(ink):
    """Measures ink `[N, 28, 28]`. Returns: the longer side, whether it is centred by mass, the width of strokes."""
    ink = ink[ink.max((1, 2)) > 64]
    if not len(ink):
        return 20, True, [2, 3, 4]
    places = np.arange(ink.shape[1])
    sides, of_box, of_mass = [], [], []
    for axis in (1, 2):
        inked = ink.max(axis) > 32
        first, last = inked.argmax(1), ink.shape[1] - 1 - inked[:, ::-1].argmax(1)
        sides.append(last - first + 1)
        of_box.append((first + last) / 2)
        of_mass.append(ink.sum(axis) @ places / ink.sum((1, 2)))
    by_mass = np.std(of_mass, axis=1).sum() < np.std(of_box, axis=1).sum()
    return np.median(np.max(sides, axis=0)), by_mass, np.quantile(stroke_width(ink[:_MEASURED]), [0.02, 0.5, 0.98])


def stroke_width(levels):
    """Returns the width of the strokes in each of many levels `[N, H, W]`, in pixels: floats `[N]`.

    The total variation of a stroke is twice its length times its level, and its sum is length times width times level.
    """
    padded = np.pad(levels, ((0, 0), (1, 1), (1, 1)))
    variation = np.hypot(np.diff(padded, axis=1)[:, :, 1:], np.diff(padded, axis=2)[:, 1:]).sum((1, 2))
    return 2 * levels.sum((1, 2)) / np.maximum(variation, 1e-6)
