"""Compares the parts of a data set by nearest neighbours: images that are turned, labels that mean other classes."""

from mnist.data.readers import MAX_CLASSES, SIDE

import numpy as np

_SAMPLE = 1000  # images of a part
_CERTAIN = 50  # images that a correction changes between right and wrong. Four in five of them have to become right
_CORRECTIONS = {
    "transposed": lambda images: images.swapaxes(1, 2),
    "mirrored": lambda images: images[:, :, ::-1],
    "upside down": lambda images: images[:, ::-1],
    "turned by 180 degrees": lambda images: images[:, ::-1, ::-1],
    "turned clockwise": lambda images: np.rot90(images, 1, axes=(1, 2)),
    "turned counterclockwise": lambda images: np.rot90(images, 3, axes=(1, 2)),
}


def compare(train, others, classes):
    """Compares a part of a data set with its training set, by some images of each.

    The label of the nearest training image is the guess for an image. A part certainly differs if most guesses are
    right after a correction, and if the correction makes four times as many right as wrong.

    Args:
      train, others: `data.Examples`.
      classes: a tuple of the names.

    Returns: the difference that is most certain, as text. It is "" if none is certain.
    """
    images, labels = _sample(train)
    those, expected = _sample(others)
    guesses, found = labels[_nearest(those, images)], []
    before = guesses == expected

    def add(text, before, after):
        gained, lost = (after & ~before).sum(), (before & ~after).sum()
        if after.mean() >= 0.5 and gained + lost >= _CERTAIN and gained >= 4 * lost:
            rates = f"the nearest training image has the label of {before.mean():.0%}, and of {after.mean():.0%}"
            found.append((after.mean(), f"{text}: {rates} if that is undone"))

    for fault, correct in _CORRECTIONS.items():
        add(f"images that look {fault}", before, labels[_nearest(correct(those), images)] == expected)
    # Every second image gives the meaning of a label, and the others show whether it holds.
    meaning = np.arange(MAX_CLASSES)
    for label in np.unique(guesses[::2]):
        meaning[label] = np.bincount(expected[::2][guesses[::2] == label]).argmax()
    moved = np.flatnonzero(meaning != np.arange(MAX_CLASSES))
    if len(moved) and set(meaning[moved]) == set(moved):
        text = f"labels of other classes, as {classes[meaning[moved[0]]]} for images of {classes[moved[0]]}"
        add(text, before[1::2], (meaning[guesses] == expected)[1::2])
    return max(found, default=(0, ""))[1]


def _sample(examples):
    """Returns images from all of a part, float32 `[N, 7, 7]`, and their labels, int `[N]`."""
    chosen = np.unique(np.linspace(0, len(examples.labels) - 1, _SAMPLE).astype(int))
    blocks = examples.images[chosen].reshape(-1, SIDE // 4, 4, SIDE // 4, 4)
    return blocks.mean(axis=(2, 4), dtype=np.float32), examples.labels[chosen].astype(int)


def _nearest(images, others):
    """Returns the index of the nearest of `others` for each of `images`."""
    images, others = images.reshape(len(images), -1), others.reshape(len(others), -1)
    return ((others**2).sum(axis=1) / 2 - images @ others.T).argmin(axis=1)
