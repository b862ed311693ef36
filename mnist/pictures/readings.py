"""Reads a picture in several ways, and chooses the one that is most like the training images."""

from typing import NamedTuple

from mnist import Error
from mnist.pictures import ink as inks
from mnist.pictures.files import read_sheets
from mnist.pictures.look import stroke_width

import numpy as np
from PIL import Image
from scipy import ndimage

# The cost of a reading beside its distance from the training images. The 99 % quantile of the distance is 1.
_PLAIN, _WHOLE, _PARTS, _UNEVEN = 0.0, 0.2, 0.3, 0.4  # how far the picture was processed
_INVERTED, _RESHAPED, _REDRAWN, _SECOND_SHEET = 0.15, 0.1, 0.1, 0.05
_UNEXPLAINED = 0.5  # all contrast of the picture is not of this ink
_TOUCHING, _CUT = 0.2, 2.0  # the ink touches the border, and times the share of the border that it touches
_SHADOW = 4.0  # times that share and the contrast that this ink does not explain
_LIGHT = 0.3  # ink on paper with lines or shadows is usually dark
_THICK = 0.5  # times the doublings of the widest usual stroke, because shadows are thick
_NO_ANSWER = 0.5  # times what is missing to a probability of 1
_ENOUGH = 0.85  # a reading that costs less is taken before the picture is processed further
_HOPELESS = 1.8  # a reading that costs more is of noise or of other things
_SEVERAL = 1.18  # the least gain, height and width of halves that are digits
_CLOSE = 0.15  # readings whose costs differ by less are about equally likely


class Reading(NamedTuple):
    """A picture as an image for the network."""

    image: np.ndarray  # uint8 [28, 28, 1]
    unlike: float  # the distance from the training images, see `Look.unlike`
    cost: float  # the distance, and more for a picture that was processed further
    ink: inks.Ink | None  # the ink, if it was separated from the paper
    probabilities: np.ndarray | None  # floats [classes], the answer of the network

    @property
    def doubt(self):
        """A reason why the image may be no digit, or None. It is wrong for 1 % of the training images."""
        return "unlike the training images" if self.unlike > 1 else None

    def no_answer(self):
        """Returns the cost of what is missing to a probability of 1."""
        return 0 if self.probabilities is None else _NO_ANSWER * (1 - self.probabilities.max())

    def is_clear(self):
        """Returns whether separated ink is like the training images, with one answer, and not cut by the border."""
        return self.unlike < 0.9 and not self.ink.cut and (self.probabilities is None or self.probabilities.max() > 0.9)


def read_picture(path, look, predict=None):
    """Reads an image file as a run's training images look.

    It tries the picture as it is, then its whole ink, then parts of the ink, then the ink in uneven light. It stops
    when a reading is like the training images.

    Args:
      path: the name of the file.
      look: a `Look`.
      predict: a function from uint8 images `[N, 28, 28, 1]` to probabilities `[N, classes]`. A reading with a clear
        answer is then preferred. Default: the distance alone decides.

    Returns: a list of `Reading`s, the best first, with those that are about as likely.
    Raises: `mnist.Error` if the file holds no image that can be read, no ink, or several digits.
    """
    sheets = read_sheets(path)
    if look.is_inked():
        sheets = inks.trim(sheets[0]) + sheets
    found = []
    for read in _STAGES if look.is_inked() else _STAGES[:1]:
        drawn = [
            (*each, cost + _SECOND_SHEET * number)
            for number, sheet in enumerate(sheets)
            for *each, cost in read(sheet, look)
        ]
        if drawn:
            found += _compare(drawn, look, predict)
            if min(reading.cost for reading in found) < _ENOUGH:
                break
    if not found:
        raise Error(f"{path}: holds no digit: nothing stands out from the paper.")
    best, *_ = found = sorted(found, key=lambda reading: reading.cost)
    with_ink = [reading for reading in found if reading.ink]
    if best.ink and any(reading.is_clear() and reading.ink.is_apart(best.ink) for reading in with_ink):
        raise Error(f"{path}: several digits, expected one: cut the picture into one file for each.")
    # A part may be read well beside another digit. Ink at the border may be of lines or shadows.
    whole = [reading for reading in with_ink if reading.ink.share > 0.9 and not reading.ink.cut]
    least = np.inf if best.ink else best.unlike + best.no_answer()
    if any(_are_several(reading, least, look, predict) for reading in [best, *whole[:1]] if reading.ink):
        raise Error(f"{path}: several digits, expected one: if they touch, cut the picture into one file for each.")
    if look.is_inked() and best.cost > _HOPELESS:
        raise Error(f"{path}: holds no digit: nothing in it looks like the training images.")
    return [reading for reading in found if reading.cost < best.cost + _CLOSE]


def _are_several(reading, least, look, predict):
    """Returns whether ink is wide, and both halves of it are high and more like the training images.

    `least` is an upper bound of the cost of the ink as one digit, which here is its distance and its doubt.
    """
    height, width = reading.ink.mask.shape
    if width < 0.8 * height or reading.ink.mask.mean() > 0.8:  # one digit, or a block
        return False
    halves = [ink for pair in reading.ink.halves() for ink in pair]
    drawn = [(number, *framed) for number, ink in enumerate(halves) for framed in _frame(ink, look, 0)]
    if not drawn:
        return False
    costs = np.full(len(halves), np.inf)
    for (number, *_), half in zip(drawn, _compare([framed for _, *framed in drawn], look, predict), strict=True):
        costs[number] = min(costs[number], half.cost)
    costs = costs.reshape(-1, 2).max(axis=1)
    heights = np.reshape([len(ink.mask) / height for ink in halves], [-1, 2]).min(axis=1)
    gain = min(least, reading.unlike + reading.no_answer()) - costs
    evidence = gain + 0.5 * np.minimum(heights, 0.95) + 0.5 * min(width / height, 1.6)
    return np.any((evidence > _SEVERAL) & (costs < 1))


def _compare(drawn, look, predict):
    images = np.stack([image for image, *_ in drawn])
    answers = [None] * len(drawn) if predict is None else predict(images[..., np.newaxis])
    for (image, ink, cost), unlike, answer in zip(drawn, look.unlike(images), answers, strict=True):
        reading = Reading(image[..., np.newaxis], unlike, cost + unlike, ink, answer)
        yield reading._replace(cost=reading.cost + reading.no_answer())


def _read_plain(grey, look):
    """Yields the picture as it is, scaled to 28x28, or placed there if it is smaller."""
    side, (height, width) = look.resolution, grey.shape
    pictures = [(_resize(grey, side, side), _PLAIN if height == width else _RESHAPED)]
    if height != width:
        least = min(height, width)
        top, left = (height - least) // 2, (width - least) // 2
        pictures += [
            (_resize(_pad(grey, max(height, width)), side, side), _RESHAPED),
            (_resize(grey[top : top + least, left : left + least], side, side), _RESHAPED),
        ]
    if max(height, width) < side:
        pictures.append((_pad(grey, side), _RESHAPED))
    for picture, cost in pictures:
        image = np.clip(np.rint(picture), 0, 255).astype(np.uint8)
        if np.ptp(image) >= 8 or not look.is_inked():
            yield image, None, cost
            yield 255 - image, None, cost + _INVERTED


def _read_ink(find, cost, light=0):
    """Returns a stage that frames each ink that `find` yields. Light ink costs more by `light`."""
    return lambda grey, look: (
        framed for ink in find(inks.reduce(grey)) for framed in _frame(ink, look, cost + light * ink.is_light)
    )


_STAGES = (
    _read_plain,
    _read_ink(inks.find_whole, _WHOLE),
    _read_ink(inks.find_parts, _PARTS, _LIGHT),
    _read_ink(inks.find_in_uneven_light, _UNEVEN, _LIGHT),
)


def _frame(ink, look, cost):
    """Yields ink in the frame of the training images, with its own strokes, and with theirs if these differ."""
    cost += _UNEXPLAINED * (1 - ink.share) + _TOUCHING * (ink.cut > 0) + (_CUT + _SHADOW * (1 - ink.share)) * ink.cut
    width = stroke_width(ink.levels[np.newaxis])[0] * look.side / max(ink.levels.shape)
    narrow, usual, wide = look.pen
    cost += _THICK * max(0, np.log2(width / wide))
    yield _place(ink.levels, look), ink, cost
    if not narrow <= width <= wide:
        yield _place(_redraw(ink.mask, (usual - width) / 2, look), look), ink, cost + _REDRAWN


def _redraw(mask, shift, look):
    """Draws a mask again with its edges moved outwards by `shift` pixels of the training images."""
    fine = 8  # pixels for each pixel of the training images
    scale = fine * look.side / max(mask.shape)
    height, width = (max(1, round(length * scale)) for length in mask.shape)
    large = np.pad(_resize(mask, height, width) > 0.5, int(fine * abs(shift)) + 2)
    distance = ndimage.distance_transform_edt(large) - ndimage.distance_transform_edt(~large)
    levels = 255 * np.clip(distance + fine * shift + 0.5, 0, 1)
    return levels[inks.box_of(levels > 0)] if levels.any() else 255.0 * mask


def _place(levels, look):
    """Scales ink `[H, W]` and places it in an image `[28, 28]`, as the training images have it."""
    side, scale = look.resolution, look.side / max(levels.shape)
    height, width = (max(1, round(length * scale)) for length in levels.shape)
    small = np.clip(_resize(levels, height, width), 0, 255)
    target, middles = (side - 1) / 2, [(length - 1) / 2 for length in small.shape]
    if look.by_mass and small.any():
        target = side / 2  # MNIST's convention
        middles = [np.average(np.arange(small.shape[axis]), weights=small.sum(1 - axis)) for axis in (0, 1)]
    top, left = (
        int(np.clip(round(target - middle), 0, side - length))
        for middle, length in zip(middles, small.shape, strict=True)
    )
    image = np.zeros([side, side])
    image[top : top + height, left : left + width] = small
    return np.rint(look.paper + image / 255 * (look.ink - look.paper)).astype(np.uint8)


def _pad(grey, side):
    """Pads a picture to a square with the usual level of its border."""
    level = np.median(np.concatenate([grey[[0, -1]].ravel(), grey[:, [0, -1]].ravel()]))
    square = np.full((side, side), level)
    top, left = ((side - length) // 2 for length in grey.shape)
    square[top : top + grey.shape[0], left : left + grey.shape[1]] = grey
    return square


def _resize(levels, height, width):
    picture = Image.fromarray(levels.astype(np.float32))
    return np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS), np.float64)
