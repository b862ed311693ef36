"""Finds what is drawn in a picture of paper: under even light, across shadows, beside a table, on ruled paper."""

from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

_WORK = 400  # pixels of the longer side where paper is told from ink; a digit in it is still larger than 28
_THIN = 0.03  # of the longer side: no stroke of a digit that spans the picture is as thin as a ruled line


class Ink(NamedTuple):
    """What is drawn."""

    levels: np.ndarray  # float [H, W], 0 (paper) to 255, cropped to what is drawn
    frame: np.ndarray  # bool [H', W'], where it is in the picture, perhaps at a smaller scale

    def has_several_parts(self):
        """Whether two parts lie side by side or one above the other, each large enough to be a digit."""
        parts, count = ndimage.label(self.frame, np.ones([3, 3]))
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
    """Finds the ink in grey levels `[H, W]` from 0 to 255. Returns: an `Ink`; None if nothing stands out."""
    paper, noise, odd = _fit_paper(grey)
    even = _find_in_even_light(grey, paper, noise)
    if (odd > 0.004 and not _fills(even)) or _is_thick(even):
        return _find_in_uneven_light(grey) or even
    return even


def _find_in_even_light(grey, paper, noise):
    ink = grey - paper
    ink[np.abs(ink) <= 3 * noise] = 0
    # Ink is where most of the contrast is: a bright speck on grey paper turns nothing around.
    ink = np.maximum(ink if np.sum(ink * np.abs(ink)) >= 0 else -ink, 0)
    if ink.max() < max(16, 6 * noise):
        return None
    scale = 255 / ink.max()
    ink *= scale
    # What is fainter than a quarter of the darkest ink, or hardly above the noise, frames no digit.
    frame = ink > min(max(64, 6 * noise * scale), 254)
    return Ink(_crop(ink, frame), frame)


def _fills(ink):
    """Whether it touches all four sides of the picture and is not ruled: a digit that is cut out."""
    if ink is None or not all(side.any() for side in (ink.frame[0], ink.frame[-1], ink.frame[:, 0], ink.frame[:, -1])):
        return False
    small = _shrink_mask(ink.frame)
    boxes = ndimage.find_objects(ndimage.label(small, np.ones([3, 3]))[0])
    if max((small[box].size for box in boxes), default=0) < 0.6 * small.size:  # shadows and lines, cut by each other
        return False
    return not (_find_lines(small).any() or _find_lines(small.T).any())


def _is_thick(ink):
    """Whether some of it is thicker than a stroke of a digit that is in the picture: a shadow, a table."""
    if ink is None:
        return False
    small = np.pad(_shrink_mask(ink.frame), 1, "edge")
    return ndimage.distance_transform_edt(small).max() > 0.2 * max(small.shape)


def _shrink_mask(mask):
    factor = -(-max(mask.shape) // 200)
    return np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).reduce(factor)) > 127


def _crop(ink, frame):
    rows, columns = (np.flatnonzero(frame.any(axis=axis)) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _fit_paper(grey):
    """Fits a quadratic surface to the border, where the light may be uneven and ink may touch it.

    Returns: the paper's grey levels `[H, W]`, the standard deviation of its noise, and the share of the border that
      is neither.
    """
    rows, columns = (np.linspace(-1, 1, n) for n in grey.shape)
    r, c = (np.broadcast_to(x, grey.shape) for x in (rows[:, np.newaxis], columns))
    border = [np.concatenate([x[0], x[-1], x[1:-1, 0], x[1:-1, -1]]) for x in (grey, r, c)]
    levels, r, c = border
    terms = np.stack([np.ones_like(r), r, c, r * c, r**2, c**2], axis=1)
    errors = np.abs(levels - np.median(levels))
    for _ in range(10):  # least trimmed squares: a quarter of the border may be ink
        near = errors <= np.quantile(errors, 0.75)
        fit = np.linalg.lstsq(terms[near], levels[near], rcond=None)[0].round(6)
        errors = np.abs(levels - terms @ fit)
    across = fit[0] + fit[2] * columns + fit[5] * columns**2
    down = fit[1] * rows + fit[4] * rows**2
    paper = across + down[:, np.newaxis] + fit[3] * np.outer(rows, columns)
    noise = 1.4826 * np.median(errors)
    return paper, noise, np.mean(errors > max(4 * noise, 8))


def _find_in_uneven_light(grey):
    """As `find_ink`, where no smooth surface is the paper."""
    grey = ndimage.gaussian_filter(_reduce(grey), 1)
    window = max(3, max(grey.shape) // 6)
    if _is_light_on_dark(grey, window):
        grey = 255 - grey
    # Closing fills what is narrower than its window, and keeps every edge of what is wider: of shadows, of a table.
    paper = _close(grey, window)
    contrast = (paper - grey) / np.maximum(paper, 64)  # ink takes a share of the light, also in a shadow
    middle = np.median(contrast)
    noise = 1.4826 * np.median(np.abs(contrast - middle))
    mask = contrast > max(0.08, middle + 6 * noise)
    ruled = _find_lines(mask) | _find_lines(mask.T).T
    mask &= ~ruled
    kept = _find_digit(mask, contrast)
    if not kept.any():
        return None
    strongest = np.quantile(contrast[kept], 0.9)
    frame = _find_digit(kept & (contrast > 0.4 * strongest), contrast)  # what was a thread to it falls off
    rim = ndimage.binary_dilation(frame, iterations=2) & ~ruled
    ink = np.clip(np.where(rim, contrast * (255 / strongest), 0), 0, 255)
    return Ink(_crop(ink, frame), frame)


def _reduce(grey):
    factor = -(-max(grey.shape) // _WORK)
    return np.asarray(Image.fromarray(grey.astype(np.float32)).reduce(factor), np.float64)


def _close(grey, window):
    """Closes grey levels with an octagon: a square grown by a third of the window to a diamond on each side."""
    grow = window // 3
    square = window - 2 * grow
    dilated = _spread(ndimage.maximum_filter(grey, square, mode="nearest"), grow, np.maximum)
    return _spread(ndimage.minimum_filter(dilated, square, mode="nearest"), grow, np.minimum)


def _spread(grey, steps, extreme):
    """Takes the maximum or the minimum over a diamond that reaches `steps` pixels far."""
    for _ in range(steps):
        padded = np.pad(grey, 1, "edge")
        across = extreme(padded[1:-1, :-2], padded[1:-1, 2:])
        grey = extreme(grey, extreme(across, extreme(padded[:-2, 1:-1], padded[2:, 1:-1])))
    return grey


def _is_light_on_dark(grey, window):
    """Whether strokes are brighter than what is around. Opening takes bright ones away, closing dark ones."""
    opened, closed = 255 - _close(255 - grey, window), _close(grey, window)
    dark = _close(opened, window) - opened  # of what has no bright strokes, so that gaps in dark ones do not count
    light = closed - (255 - _close(255 - closed, window))
    return np.sum(light**2) > 3 * np.sum(dark**2)  # what a shadow leaves lit may be narrow, too


def _find_lines(mask):
    """The ruled lines of a mask `[H, W]`, nearly level: they cross most of the picture, and are thin."""
    height, width = mask.shape
    thin = max(2, round(_THIN * max(mask.shape)))
    columns = np.arange(width)
    runs = _run_lengths(mask)
    candidates = mask & (runs <= thin)
    best, lines = 0, np.zeros_like(mask)
    for slope in np.linspace(-0.07, 0.07, 29):  # four degrees to either side
        offsets = np.round(slope * (columns - width / 2)).astype(int)
        rows = (np.arange(height)[:, np.newaxis] + offsets) % height  # sheared: a line becomes a row
        sheared = candidates[rows, columns]
        share = sheared.mean(axis=1)
        found = share > 0.4
        if (score := np.sum(share[found] ** 2)) > best:
            # One row above and below: a line is not straight to the pixel.
            near = ndimage.binary_dilation(found, iterations=2)
            best, lines = score, np.zeros_like(mask)
            lines[rows, columns] = near[:, np.newaxis] & sheared
    return lines


def _run_lengths(mask):
    """How long the vertical run of a mask is that a pixel is in; 0 where there is none."""
    lengths = np.zeros(mask.shape, int)
    above = np.zeros(mask.shape[1], int)
    for row in range(len(mask)):
        above = (above + 1) * mask[row]
        lengths[row] = above
    for row in range(len(mask) - 2, -1, -1):
        lengths[row] = np.where(mask[row] & mask[row + 1], lengths[row + 1], lengths[row])
    return lengths


def _find_digit(mask, contrast):
    """Those of a mask's parts that are of the digit, bool `[H, W]`."""
    parts, count = ndimage.label(mask, np.ones([3, 3]))
    if not count:
        return mask
    labels = np.arange(1, count + 1)
    mass = ndimage.sum_labels(contrast, parts, labels)
    boxes = ndimage.find_objects(parts)
    sizes = np.array([max(s.stop - s.start for s in box) for box in boxes])
    height, width = mask.shape
    inside = np.array([r.start > 0 and c.start > 0 and r.stop < height and c.stop < width for r, c in boxes])
    if (sizes[inside] > 0.15 * max(mask.shape)).any():  # what touches the border is of the surroundings
        mass = mass * inside
    main = mass.argmax()
    # Crumbs, and what is faint and far, as the corner of a table, are not of the digit; another digit may be far.
    near = _distances(parts == labels[main], boxes) < 0.25 * sizes[main]
    return np.isin(parts, labels[(mass > 0.05 * mass[main]) & (near | (mass > 0.4 * mass[main]))])


def _distances(mask, boxes):
    """How far each box is from a mask."""
    distance = ndimage.distance_transform_edt(~mask)
    return np.array([distance[box].min() for box in boxes])
