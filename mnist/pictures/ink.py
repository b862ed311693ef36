"""Finds the ink in a picture: in even light or across shadows, with or without printed lines and other parts."""

from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

# Pixels of the longer side at which paper and ink are separated. A digit is then still larger than 28 pixels.
_WORK = 300
_THIN = 0.03  # share of the longer side: a ruled line is at most as thick
_SPECK = 0.05  # share of the longer side: smaller parts are specks
_FOUR = ndimage.generate_binary_structure(2, 1)  # a pixel's neighbours
_EIGHT = ndimage.generate_binary_structure(2, 2)  # and the diagonal ones


class Ink(NamedTuple):
    """Ink that was found in a picture."""

    levels: np.ndarray  # float [H, W], from 0 (paper) to 255, cropped to the ink
    mask: np.ndarray  # bool [H, W], the pixels that are ink
    share: float  # share of all contrast in the picture, light and dark, that this ink explains
    cut: float  # share of the picture's border that it touches, because a shadow or a table touches much of it
    is_light: bool  # whether it is lighter than the paper
    box: tuple[slice, slice]  # its place in the reduced picture

    def is_apart(self, other):
        """Returns whether other ink lies beside this ink, or above or below it, and is about as large."""
        sizes = [max(s.stop - s.start for s in ink.box) for ink in (self, other)]
        gaps = (max(s.start, t.start) >= min(s.stop, t.stop) for s, t in zip(self.box, other.box, strict=True))
        return any(gaps) and min(sizes) > 0.6 * max(sizes)

    def halves(self):
        """Yields the inks on both sides of upright and oblique cuts, each where it crosses little ink."""
        height, width = self.mask.shape
        rows, columns = np.indices(self.mask.shape)
        bounds = np.linspace(0.2, 0.8, 5) * width
        for slope in (-0.5, -0.25, 0, 0.25, 0.5):
            across = np.clip(np.rint(columns + slope * (rows - height / 2)), 0, width).astype(int)
            crossed = np.bincount(across[self.mask], minlength=width + 1)
            for first, last in zip(bounds.astype(int), np.ceil(bounds[1:]).astype(int), strict=False):
                left = across <= first + crossed[first:last].argmin()
                inks = self._within(left), self._within(~left)
                if min(ink.mask.sum() if ink else 0 for ink in inks) > 0.12 * self.mask.sum():
                    yield inks

    def _within(self, side):
        """Returns the ink on one side of a cut, without the remains of the other digit, or None."""
        parts, count = ndimage.label(self.mask & side, _EIGHT)
        if not count:
            return None
        sizes = np.bincount(parts.ravel())[1:]
        mask = np.append(False, sizes > 0.1 * sizes.max())[parts]
        box = box_of(mask)
        levels = np.where(side & ((parts == 0) | mask), self.levels, 0)
        return self._replace(levels=levels[box], mask=mask[box], share=1, cut=0)


def find_whole(grey):
    """Yields the whole ink of a picture `[H, W]` in even light, dark on light or light on dark."""
    found = _in_even_light(grey)
    for is_light, (contrast, mask) in enumerate(found):
        if mask.any():
            yield _cut(contrast, mask, _energy(found), bool(is_light))


def find_parts(grey):
    """Yields each large part of the ink in even light without printed lines, with the parts near it and alone."""
    found = [_without_lines(*each) for each in _in_even_light(grey)]
    for is_light, each in enumerate(found):
        yield from _find_digits(*each, _energy(found), bool(is_light))


def find_in_uneven_light(grey):
    """Yields the same as `find_parts` where the paper is not a smooth surface."""
    grey = ndimage.gaussian_filter(grey, max(grey.shape) / _WORK)
    window = max(3, max(grey.shape) // 6)
    found = []
    for levels in (grey, 255 - grey):
        # Closing fills what is narrower than its window. It keeps every edge of wider shapes, as shadows and tables.
        paper = _close(levels, window)
        contrast = (paper - levels) / np.maximum(paper, 64)
        middle = np.median(contrast)
        noise = 1.4826 * np.median(np.abs(contrast - middle))
        found.append(_without_lines(contrast, contrast > max(0.08, middle + 6 * noise)))
    for is_light, each in enumerate(found):
        yield from _find_digits(*each, _energy(found), bool(is_light))


def trim(grey):
    """Returns a list of a picture `[H, W]` without dark or light bars at its sides. It is empty if there are none."""
    is_light = grey > (grey.min() + grey.max()) / 2
    for bar in (is_light, ~is_light):
        box = []
        for axis in (1, 0):
            inner = bar.mean(axis=axis) < 0.97
            box.append(slice(inner.argmax(), len(inner) - inner[::-1].argmax()))
        inner = bar[tuple(box)]
        # The line of a box differs from the paper around it, too, but not the paper inside.
        if bar.size > inner.size > 0.25 * bar.size and max(_ring(inner).mean(), inner.mean() - 0.15) < 0.25:
            return [grey[tuple(box)]]
    return []


def _in_even_light(grey):
    found = []
    for levels in (grey, 255 - grey):
        paper, noise = _fit_paper(levels)
        contrast = (paper - levels) / np.maximum(paper, 64)  # ink absorbs a share of the light
        noise = noise / max(64, np.median(paper))
        strongest = np.quantile(contrast, 0.995)
        bound = max(0.25 * strongest, 4 * noise) if strongest >= max(0.06, 6 * noise) else np.inf
        found.append((contrast, contrast > bound))
    return found


def _without_lines(contrast, mask):
    ruled = _find_lines(mask) | _find_lines(mask.T).T
    return np.where(ruled, 0, contrast), mask & ~ruled


def _energy(found):
    return sum(np.sum(contrast[mask] ** 2) for contrast, mask in found)


def reduce(grey, most=_WORK):
    """Returns grey levels `[H, W]`, reduced by an integer factor to at most `most` pixels in the longer side."""
    return np.asarray(Image.fromarray(grey.astype(np.float32)).reduce(-(-max(grey.shape) // most)), np.float64)


def _cut(contrast, mask, energy, is_light):
    """Cuts ink out of its picture. The levels fade to 0 beside the mask, as the edge of a stroke does."""
    strongest = np.quantile(contrast[mask], 0.9)
    rim = ndimage.binary_dilation(mask, _EIGHT)
    levels = np.clip(np.where(rim, contrast * (255 / max(strongest, 1e-6)), 0), 0, 255)
    box = box_of(mask)
    return Ink(levels[box], mask[box], np.sum(contrast[mask] ** 2) / energy, _ring(mask).mean(), is_light, box)


def _ring(grey):
    """Returns the pixels at the border of a picture `[H, W]`."""
    return np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])


def box_of(mask):
    """Returns the slices of the box around the pixels of a mask `[H, W]`, which has some."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _fit_paper(grey):
    """Fits a quadratic surface to the border, where the light may be uneven and ink may touch it.

    Returns: the grey levels of the paper `[H, W]`, and the standard deviation of their noise.
    """
    rows, columns = np.ogrid[-1 : 1 : 1j * grey.shape[0], -1 : 1 : 1j * grey.shape[1]]
    surface = np.broadcast_arrays(1.0, rows, columns, rows * columns, rows**2, columns**2)
    border = np.ones(grey.shape, bool)
    border[1:-1, 1:-1] = False
    levels, terms = grey[border], np.stack([term[border] for term in surface], axis=1)
    errors = np.abs(levels - np.median(levels))
    for _ in range(10):  # least trimmed squares, because a quarter of the border may be ink
        near = errors <= np.quantile(errors, 0.75)
        fit = np.linalg.lstsq(terms[near], levels[near], rcond=None)[0].round(6)
        errors = np.abs(levels - terms @ fit)
    return sum(factor * term for factor, term in zip(fit, surface, strict=True)), 1.4826 * np.median(errors)


def _close(grey, window):
    """Closes grey levels with an octagon: a square grown by a third of the window to a diamond on each side."""
    grow = window // 3
    for extreme in (ndimage.maximum_filter, ndimage.minimum_filter):
        grey = extreme(grey, window - 2 * grow, mode="nearest")
        for _ in range(grow):
            grey = extreme(grey, footprint=_FOUR, mode="nearest")
    return grey


def _find_lines(mask):
    """Returns the ruled lines of a mask `[H, W]`: thin, nearly level, across most of the picture."""
    height, width = mask.shape
    thin = max(2, round(_THIN * max(mask.shape)))
    runs = ndimage.label(mask, [[0, 1, 0]] * 3)[0]  # the number of each pixel's vertical run
    rows, columns = np.nonzero(mask & (np.bincount(runs.ravel())[runs] <= thin))
    best, lines = 0, np.zeros_like(mask)
    for slope in np.linspace(-0.07, 0.07, 29):  # four degrees to either side
        sheared = (rows - np.round(slope * (columns - width / 2)).astype(int)) % height  # a line becomes a row
        share = np.bincount(sheared, minlength=height) / width
        found = share > 0.4
        if (score := np.sum(share[found] ** 2)) > best:
            near = ndimage.binary_dilation(found, iterations=2)[sheared]  # a line is not straight to the pixel
            best, lines = score, np.zeros_like(mask)
            lines[rows[near], columns[near]] = True
    return lines


def _find_digits(contrast, mask, energy, is_light):
    """Yields each large part of a mask `[H, W]`, at most three, with the parts near it and alone."""
    parts, count = ndimage.label(mask, _EIGHT)
    if not count:
        return
    mass = ndimage.sum_labels(contrast, parts, np.arange(1, count + 1))
    boxes = ndimage.find_objects(parts)
    sizes = np.array([max(s.stop - s.start for s in box) for box in boxes])
    least = max(3, _SPECK * max(mask.shape))
    large = [i for i in np.argsort(-mass)[:3] if mass[i] > 0.15 * mass.max() and sizes[i] > least]
    for main in large:
        distance = ndimage.distance_transform_edt(parts != main + 1)
        near = np.array([distance[box].min() for box in boxes]) < 0.25 * sizes[main]
        for kept in (near & (mass > 0.05 * mass[main]), np.arange(count) == main):
            whole = np.append(False, kept)[parts]
            yield _cut(contrast, whole, energy, is_light)
            if kept.sum() == 1:
                break
        pieces = ndimage.label(whole & (contrast > 0.4 * np.quantile(contrast[whole], 0.9)), _EIGHT)[0]
        if pieces.max() > 1:  # a faint thread joins them, as the edge of a shadow
            yield _cut(contrast, pieces == np.bincount(pieces[pieces > 0]).argmax(), energy, is_light)
