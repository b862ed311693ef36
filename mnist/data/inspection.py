"""The inspection of a data set before it is trained on: what is certainly wrong, and what is odd."""

from typing import NamedTuple

from mnist import Error
from mnist.data import neighbours
from mnist.data.readers import SIDE, list_some

import numpy as np

_SOME = 50  # images of a class for its means
_CHUNK = 1000  # images at a time, which fit the cache of a core
_FEW = 50  # a class is rare if the mean over the classes is as many times as large
_MAX_DIGITS = 10  # labels below may be a choice of MNIST's digits, as 3 and 8 alone
_LIGHT = 127.5  # the mean grey level above which an image is light
_POLARITY = 64  # grey levels by which light images have to differ from dark ones.
_NO_CONTRAST, _LOW_CONTRAST = 16, 127  # the range of grey levels of scikit-learn's raw digits, and half of the range


class Inspection(NamedTuple):
    """The result of `inspect`.

    Attributes:
      counts: a dict of ints, by key of results.json. `grey_range` is the range of the training images. A sound data set
        has 255 there, and 0 for all other keys.
      wrong: a list of texts. Each names a mistake that no run should train on.
      odd: a list of texts. Each names what may be deliberate.
    """

    counts: dict[str, int]
    wrong: list[str]
    odd: list[str]

    def refuse(self):
        """Raises `mnist.Error` if the data set is certainly wrong."""
        if self.wrong:
            raise Error(f"{'; '.join(self.wrong)}.\nCorrect the data, or train on them as they are: --allow_odd_data.")


def inspect(dataset):
    """Inspects a `data.Dataset`. Returns: an `Inspection`, in which training[17] has the index 17, counted from 0."""
    parts = {"training": dataset.train, "validation": dataset.validation, "test": dataset.test}
    if dataset.test is dataset.validation:
        del parts["validation"]
    found = Inspection({}, [], [])
    _inspect_classes(parts, dataset.classes, found)
    _inspect_levels(parts, found)
    _inspect_copies(parts, found)
    for part in [*parts][1:]:
        if text := neighbours.compare(dataset.train, parts[part], dataset.classes):
            found.odd.append(f"{part} {text}")
    for key in [key for key in found.counts if "_test_" in key]:
        found.counts.setdefault(key.replace("_test_", "_validation_"), found.counts[key])
    return found


def _inspect_classes(parts, classes, found):
    """Finds classes without images in a part, and classes with very few training images."""
    counts = {part: np.bincount(examples.labels, minlength=len(classes)) for part, examples in parts.items()}
    for part, of_part in counts.items():
        found.counts[f"classes_without_{part}_images"] = int((of_part == 0).sum())
    train = counts["training"]
    hint = "with --holdout, --holdout_by=class takes images of each class"
    lost = (train == 0) & (counts.get("validation", train) > 0)
    if lost.any():
        text = f"classes with validation images, but without training images: {_name(lost, classes)}"
        found.wrong.append(f"{text}; {hint}")
    empty = (train == 0) & ~lost
    text = f"classes without training images: {_name(empty, classes)}"
    if reason := _explain_gap(parts["training"].labels, train, classes):
        found.wrong.append(f"{text}, {reason}")
    elif empty.any():
        found.odd.append(text)
    for part in [*parts][1:]:
        if (missing := (train > 0) & (counts[part] == 0)).any():
            text = f"classes without {part} images: {_name(missing, classes)}"
            is_hinted = part == "validation" and counts[part].sum() >= np.count_nonzero(train)
            found.odd.append(f"{text}; {hint}" if is_hinted else text)
    if (rare := _are_rare(train)).any():
        smallest, mean = train[rare].min(), train.sum() / np.count_nonzero(train)
        few = f"{smallest:,} in the smallest, {mean:,.0f} on average"
        found.odd.append(f"classes with very few training images: {_name(rare, classes)}, {few}")


def _explain_gap(labels, counts, classes):
    """Returns why classes without images can only be a mistake, as text. Returns "" if they may be deliberate.

    They may be deliberate if a classes.txt names them. Otherwise they are a mistake if only rare classes follow, as
    after one wrong label, or if they outnumber the others.

    Args:
      labels: uint8 `[N]`, N >= 1.
      counts: the number of images of each class, int `[classes]`.
      classes: a tuple of the names.
    """
    present = np.append(-1, np.flatnonzero(counts))
    steps = np.diff(present)
    gaps = np.flatnonzero(steps > 1)
    if not len(gaps) or classes != tuple(map(str, range(len(classes)))):
        return ""
    found = [gap for gap in gaps if _are_rare(counts)[present[gap + 1 :]].all()]
    if not found and present[-1] >= max(_MAX_DIGITS, 2 * len(steps)):
        found = [steps.argmax()]
    if not found:
        return ""
    before, after = present[found[0]], present[found[0] + 1]
    how = f"labels jump from {before} to {after}" if before >= 0 else f"labels begin with {after}"
    return f"because {how}, first at training[{np.argmax(labels >= after)}]"


def _are_rare(counts):
    """Returns which classes have images, but very few. Both arrays are `[classes]`."""
    return (counts > 0) & (counts * _FEW * np.count_nonzero(counts) < counts.sum())


def _name(chosen, classes):
    """Returns how many classes a mask `[classes]` holds, and the names of some, as text."""
    names = [classes[i] for i in np.flatnonzero(chosen)]
    return f"{len(names)} of {len(classes)} ({list_some(names)})"


def _inspect_levels(parts, found):
    """Finds images of few grey levels, blank images, and images that are inverted against others."""
    narrow, blank = {}, 0
    mixed = [part for part, examples in parts.items() if _have_two_polarities(*examples)]
    if mixed:
        text = f"{' and '.join(mixed)} images of both polarities: light ones are negatives of dark ones of their class"
        found.odd.append(text)
    for part, (images, labels) in parts.items():
        low, high = int(images.min()), int(images.max())
        if part == "training":
            found.counts["grey_range"] = high - low
        if high - low <= _LOW_CONTRAST:
            narrow.setdefault((low, high), []).append(part)
        shared = np.intersect1d(labels, parts["training"].labels)
        means = [_mean_image(*examples, shared) for examples in (parts["training"], parts[part])]
        if not mixed and (correlation := _correlate(*means)) < -0.5:
            text = f"{part} images that look inverted: the correlation of their mean with the mean training image is"
            found.wrong.append(f"{text} {correlation:.2f}")
        for start in range(0, len(images), _CHUNK):
            flat = images[start : start + _CHUNK].reshape(-1, SIDE * SIDE)
            blank += int((flat.max(axis=1) == flat.min(axis=1)).sum())
    for (low, high), names in narrow.items():
        findings = found.wrong if high - low <= _NO_CONTRAST else found.odd
        text = f"grey levels of the {' and '.join(names)} images: {low} to {high}, expected 0 to 255"
        findings.append(f"{text}; multiply them before they become uint8")
    found.counts["blank_images"] = blank
    if blank:
        total = sum(len(examples.labels) for examples in parts.values())
        found.odd.append(f"blank images, of one grey level: {blank:,} of {total:,}")


def _have_two_polarities(images, labels):
    """Returns whether the light images of most classes are negatives of its dark ones, if both are in a class."""
    found = []
    for label in np.unique(labels):
        some = images[_choose(labels, label)].reshape(-1, SIDE * SIDE)
        is_light = some.mean(axis=1) > _LIGHT
        if min(is_light.sum(), (~is_light).sum()) > 1:
            light, dark = some[is_light].mean(axis=0), some[~is_light].mean(axis=0)
            found.append(light.mean() - dark.mean() > _POLARITY and _correlate(light, dark) < -0.8)
    return 2 * sum(found) > len(found)


def _choose(labels, label):
    """Returns the indices of some images of a class, from all of a part."""
    indices = np.flatnonzero(labels == label)
    return indices[:: -(-len(indices) // _SOME)]


def _mean_image(images, labels, classes):
    """Returns the mean of the means of some images of each class, float64 `[784]`, whatever their share."""
    means = [images[_choose(labels, label)].mean(axis=0).ravel() for label in classes]
    return np.mean(means, axis=0) if means else np.zeros(1)


def _correlate(one, other):
    """Returns the correlation of two vectors, 0 if one is constant."""
    one, other = one - one.mean(), other - other.mean()
    size = np.sqrt((one @ one) * (other @ other))
    return one @ other / size if size else 0.0


def _inspect_copies(parts, found):
    """Finds images with the same pixels: in the training set, across the parts, and with different labels."""
    labels = np.concatenate([examples.labels for examples in parts.values()])
    starts = np.cumsum([0, *(len(examples.labels) for examples in parts.values())])
    first = _find_first([examples.images for examples in parts.values()])
    copies = np.flatnonzero(first < np.arange(len(first)))

    def place(i):
        number = np.searchsorted(starts, i, side="right") - 1
        return f"{[*parts][number]}[{i - starts[number]}]"

    def report(key, indices, text):
        found.counts[key] = len(indices)
        if len(indices):
            found.odd.append(f"{text}: {len(indices):,}, as {place(first[indices[0]])} and {place(indices[0])}")

    report("duplicate_images", copies[copies < starts[1]], "copies among the training images")
    differ = copies[labels[copies] != labels[first[copies]]]
    _, one_of_each = np.unique(first[differ], return_index=True)
    report("images_with_two_labels", differ[one_of_each], "images with two labels")
    for part, start, end in zip([*parts][1:], starts[1:], starts[2:], strict=False):
        leaked = copies[(copies >= start) & (copies < end) & (first[copies] < starts[1])]
        report(f"leaked_{part}_images", leaked, f"{part} images that are in the training set, too")


def _find_first(arrays):
    """Finds the first of equal images.

    Args:
      arrays: uint8 arrays `[N, 28, 28, 1]`, which count as one array.

    Returns: the index of the first equal image for each image, int `[sum of N]`.
    """
    starts = np.cumsum([0, *map(len, arrays)])

    def take(indices):
        taken = np.empty([len(indices), SIDE * SIDE], np.uint8)
        for images, start in zip(arrays, starts, strict=False):
            inside = (indices >= start) & (indices < start + len(images))
            taken[inside] = images[indices[inside] - start].reshape(-1, SIDE * SIDE)
        return taken

    codes = np.concatenate([_hash(images) for images in arrays])
    first, ordered = np.arange(len(codes)), np.sort(codes)
    left = np.flatnonzero(np.isin(codes, ordered[1:][ordered[1:] == ordered[:-1]]))
    while len(left):  # once, unless different images have the same hash
        _, places, inverse = np.unique(codes[left], return_index=True, return_inverse=True)
        leaders = left[places[inverse]]
        pairs = [(left[i : i + _CHUNK], leaders[i : i + _CHUNK]) for i in range(0, len(left), _CHUNK)]
        equal = np.concatenate([(take(some) == take(others)).all(axis=1) for some, others in pairs])
        first[left[equal]] = leaders[equal]
        left = left[~equal]
    return first


def _hash(images):
    """Returns a number for each of the images `[N, 28, 28, 1]`, uint64 `[N]`, the same for equal images."""
    factors = np.random.default_rng(0).integers(2**64, size=SIDE * SIDE // 4, dtype=np.uint64) | np.uint64(1)
    codes = np.empty(len(images), np.uint64)
    for start in range(0, len(images), _CHUNK):
        # Words of 32 bits, because a product of 64-bit words would lose the high bits of each word.
        words = np.ascontiguousarray(images[start : start + _CHUNK]).reshape(-1, SIDE * SIDE).view(np.uint32)
        codes[start : start + _CHUNK] = words.astype(np.uint64) @ factors
    return codes
