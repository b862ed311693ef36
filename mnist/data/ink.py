"""Finds the ink in a picture of paper: in even light, across shadows, beside a table, on ruled paper."""

from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

# Pixels of the longer side at which paper and ink are separated. A digit is then still larger than 28 pixels.
_WORK = 400
_THIN = 0.03  # share of the longer side: a ruled line is at most as thick, and a digit's stroke is thicker
_FOUR = ndimage.generate_binary_structure(2, 1)  # a pixel's neighbours
_EIGHT = ndimage.generate_binary_structure(2, 2)  # and the diagonal ones


class Ink(NamedTuple):
    """The ink in a picture."""

    levels: np.ndarray  # float [H, W], from 0 (paper) to 255, cropped to the ink
    frame: np.ndarray  # bool [H', W'], the ink in the picture, perhaps at a smaller scale

    def has_several_parts(self):
        """Returns whether two parts lie side by side or one above the other, each large enough to be a digit."""
        parts, count = ndimage.label(self.frame, _EIGHT)
        rows, columns = (np.ptp(indices) + 1 for indices in np.nonzero(self.frame))
        areas = np.bincount(parts.ravel(), minlength=count + 1)[1:]
        large = [
            box
            for box, area in zip(ndimage.find_objects(parts), areas, strict=True)
            if max(s.stop - s.start for s in box) > 0.4 * max(rows, columns) and area > 0.25 * areas.sum()
        ]
        pairs = [(a, b) for i, a in enumerate(large) for b in large[:i]]
        return any(max(s.start, t.start) >= min(s.stop, t.stop) for a, b in pairs for s, t in zip(a, b, strict=True))


def find_ink(grey):
    """Finds the ink in a picture.

    Args:
      grey: floats `[H, W]`. Grey levels from 0 to 255.

    Returns: an `Ink`, or None if nothing stands out.
    """
    paper, noise, odd = _fit_paper(grey)
    even = _find_in_even_light(grey, paper, noise)
    if (odd > 0.004 and not _fills(even)) or _is_thick(even):
        return _find_in_uneven_light(grey) or even
    return even


def _find_in_even_light(grey, paper, noise):
    ink = grey - paper
    ink[np.abs(ink) <= 3 * noise] = 0
    # The sum of squares decides between dark and light ink, so that a bright speck on grey paper does not.
    ink = np.maximum(ink if np.sum(ink * np.abs(ink)) >= 0 else -ink, 0)
    if ink.max() < max(16, 6 * noise):
        return None
    scale = 255 / ink.max()
    ink *= scale
    # The crop ignores ink that is fainter than a quarter of the darkest ink, or hardly above the noise.
    frame = ink > min(max(64, 6 * noise * scale), 254)
    return Ink(_crop(ink, frame), frame)


def _fills(ink):
    """Returns whether ink is a digit that was cut out: it touches all four sides and is not ruled."""
    if ink is None or not all(side.any() for side in (ink.frame[0], ink.frame[-1], ink.frame[:, 0], ink.frame[:, -1])):
        return False
    small = _shrink_mask(ink.frame)
    boxes = ndimage.find_objects(ndimage.label(small, _EIGHT)[0])
    if max((small[box].size for box in boxes), default=0) < 0.6 * small.size:  # shadows and lines that cross
        return False
    return not (_find_lines(small).any() or _find_lines(small.T).any())


def _is_thick(ink):
    """Returns whether a part is thicker than the stroke of a digit in the picture, as a shadow or a table is."""
    if ink is None:
        return False
    small = np.pad(_shrink_mask(ink.frame), 1, "edge")
    return ndimage.distance_transform_edt(small).max() > 0.2 * max(small.shape)


def _shrink_mask(mask):
    return _reduce(mask, 200) >= 0.5


def _reduce(grey, most):
    """Returns grey levels `[H, W]`, reduced by an integer factor to at most `most` pixels in the longer side."""
    return np.asarray(Image.fromarray(grey.astype(np.float32)).reduce(-(-max(grey.shape) // most)), np.float64)


def _crop(ink, frame):
    rows, columns = (np.flatnonzero(frame.any(axis=axis)) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _fit_paper(grey):
    """Fits a quadratic surface to the border, where the light may be uneven and ink may touch it.

    Returns: the grey levels of the paper `[H, W]`, the standard deviation of their noise, and the share of the border
      that does not fit.
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
    paper = sum(factor * term for factor, term in zip(fit, surface, strict=True))
    noise = 1.4826 * np.median(errors)
    return paper, noise, np.mean(errors > max(4 * noise, 8))


def _find_in_uneven_light(grey):
    """Finds the ink where the paper is not a smooth surface, and returns the same as `find_ink`."""
    grey = ndimage.gaussian_filter(_reduce(grey, _WORK), 1)
    window = max(3, max(grey.shape) // 6)
    if _is_light_on_dark(grey, window):
        grey = 255 - grey
    # Closing fills what is narrower than its window. It keeps every edge of wider shapes, as shadows and tables.
    paper = _close(grey, window)
    contrast = (paper - grey) / np.maximum(paper, 64)  # ink absorbs a share of the light, also in a shadow
    middle = np.median(contrast)
    noise = 1.4826 * np.median(np.abs(contrast - middle))
    mask = contrast > max(0.08, middle + 6 * noise)
    ruled = _find_lines(mask) | _find_lines(mask.T).T
    mask &= ~ruled
    kept = _find_digit(mask, contrast)
    if not kept.any():
        return None
    strongest = np.quantile(contrast[kept], 0.9)
    frame = _find_digit(kept & (contrast > 0.4 * strongest), contrast)  # without parts on a faint thread
    rim = ndimage.binary_dilation(frame, iterations=2) & ~ruled
    ink = np.clip(np.where(rim, contrast * (255 / strongest), 0), 0, 255)
    return Ink(_crop(ink, frame), frame)


def _close(grey, window):
    """Closes grey levels with an octagon: a square grown by a third of the window to a diamond on each side."""
    grow = window // 3
    for extreme in (ndimage.maximum_filter, ndimage.minimum_filter):
        grey = extreme(grey, window - 2 * grow, mode="nearest")
        for _ in range(grow):
            grey = extreme(grey, footprint=_FOUR, mode="nearest")
    return grey


def _is_light_on_dark(grey, window):
    """Returns whether strokes are brighter than their surroundings, by what opening and closing remove."""
    opened, closed = 255 - _close(255 - grey, window), _close(grey, window)
    dark = _close(opened, window) - opened  # from the opened picture, so that gaps in dark strokes do not count
    light = closed - (255 - _close(255 - closed, window))
    return np.sum(light**2) > 3 * np.sum(dark**2)  # a factor, because the light beside a shadow may be narrow, too


def _find_lines(mask):
    """Returns the ruled lines of a mask `[H, W]`: thin, nearly level, across most of the picture."""
    height, width = mask.shape
    thin = max(2, round(_THIN * max(mask.shape)))
    columns = np.arange(width)
    runs = ndimage.label(mask, [[0, 1, 0]] * 3)[0]  # the number of each pixel's vertical run
    candidates = mask & (np.bincount(runs.ravel())[runs] <= thin)
    best, lines = 0, np.zeros_like(mask)
    for slope in np.linspace(-0.07, 0.07, 29):  # four degrees to either side
        offsets = np.round(slope * (columns - width / 2)).astype(int)
        rows = (np.arange(height)[:, np.newaxis] + offsets) % height  # sheared, so that a line becomes a row
        sheared = candidates[rows, columns]
        share = sheared.mean(axis=1)
        found = share > 0.4
        if (score := np.sum(share[found] ** 2)) > best:
            near = ndimage.binary_dilation(found, iterations=2)  # a line is not straight to the pixel
            best, lines = score, np.zeros_like(mask)
            lines[rows, columns] = near[:, np.newaxis] & sheared
    return lines


def _find_digit(mask, contrast):
    """Returns the parts of a mask that belong to the digit, bool `[H, W]`."""
    parts, count = ndimage.label(mask, _EIGHT)
    if not count:
        return mask
    labels = np.arange(1, count + 1)
    mass = ndimage.sum_labels(contrast, parts, labels)
    boxes = ndimage.find_objects(parts)
    sizes = np.array([max(s.stop - s.start for s in box) for box in boxes])
    height, width = mask.shape
    inside = np.array([r.start > 0 and c.start > 0 and r.stop < height and c.stop < width for r, c in boxes])
    if (sizes[inside] > 0.15 * max(mask.shape)).any():  # a part that touches the border is not of the digit
        mass = mass * inside
    main = mass.argmax()
    # Crumbs do not belong to the digit, and faint parts far from it do not, as the corner of a table. A far part with
    # much ink does, because it may be another digit.
    distance = ndimage.distance_transform_edt(parts != labels[main])
    near = np.array([distance[box].min() for box in boxes]) < 0.25 * sizes[main]
    return np.isin(parts, labels[(mass > 0.05 * mass[main]) & (near | (mass > 0.4 * mass[main]))])
