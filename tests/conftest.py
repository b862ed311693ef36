"""What several test files share."""

import mnist  # noqa: F401  (first: it imports TensorFlow without the start-up chatter)

import numpy as np
import pytest


def idx_bytes(array):
    """A uint8 array as an IDX file holds it: magic number, shape, data."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def random_examples(count, seed=0):
    """Random uint8 images `[count, 28, 28]` and labels `[count]` that hold each digit in turn."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, 28, 28), np.uint8)
    return images, random.permutation(np.arange(count) % 10).astype(np.uint8)


def write_idx_folder(path, train=60, test=20):
    """Writes the four IDX files of a tiny data set, the same for the same sizes; returns `path`."""
    path.mkdir(parents=True, exist_ok=True)
    for seed, (part, count) in enumerate((("train", train), ("t10k", test))):
        images, labels = random_examples(count, seed)
        (path / f"{part}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (path / f"{part}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    return path


@pytest.fixture
def idx_folder(tmp_path):
    return write_idx_folder(tmp_path / "tiny")


class StopAfter:
    """Asks a run to stop when it is asked for the n-th time."""

    def __init__(self, n):
        self.n = n

    @property
    def signum(self):
        self.n -= 1
        return 15 if self.n < 0 else None
