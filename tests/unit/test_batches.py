"""The order of the examples, and the memory of their batches."""

import gc
import itertools
import os

import mnist
from mnist import data
from mnist.data import as_tensors, check_order, epoch_batches, epoch_order, readers, train_batches

import numpy as np
import pytest
import tensorflow as tf
from conftest import random_examples

EXAMPLES = data.Examples(random_examples(23)[0][..., np.newaxis], np.arange(23, dtype=np.uint8))


def take(count, batch_size=5, seed=1, start_step=0, examples=EXAMPLES):
    """Returns the first `count` batches, as lists of labels. The labels of `EXAMPLES` are its indices."""
    batches = train_batches(examples, batch_size, seed=seed, start_step=start_step)
    return [labels.tolist() for _, labels in batches.take(count).as_numpy_iterator()]


def flat(batches):
    return list(itertools.chain.from_iterable(batches))


@pytest.mark.parametrize(
    ("num_examples", "batch_size", "sizes"),
    [(23, 5, [5, 5, 5, 5, 3]), (20, 5, [5, 5, 5, 5]), (23, 23, [23]), (23, 1, [1] * 23)],
)
def test_every_example_once_per_epoch_with_its_label(num_examples, batch_size, sizes):
    examples = data.Examples(EXAMPLES.images[:num_examples], EXAMPLES.labels[:num_examples])
    stream = train_batches(examples, batch_size, seed=0).take(3 * len(sizes)).as_numpy_iterator()
    for _ in range(3):
        batches = list(itertools.islice(stream, len(sizes)))
        assert [len(labels) for _, labels in batches] == sizes
        assert sorted(flat(labels for _, labels in batches)) == list(range(num_examples))
        for images, labels in batches:
            assert images.dtype == labels.dtype == np.uint8
            np.testing.assert_array_equal(images, EXAMPLES.images[labels])


def test_order_is_a_function_of_seed_and_epoch():
    # These orders are the same everywhere, so that another machine or version can resume a run.
    assert epoch_order(10, seed=0, epoch=0).numpy().tolist() == [0, 4, 1, 5, 6, 8, 2, 3, 9, 7]
    assert epoch_order(10, seed=1, epoch=2).numpy().tolist() == [0, 3, 8, 1, 5, 4, 9, 7, 6, 2]
    epochs = [flat(take(5, start_step=5 * epoch)) for epoch in range(3)]
    for epoch, order in enumerate(epochs):
        assert order == epoch_order(23, 1, epoch).numpy().tolist()
    assert take(15) == take(15)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert take(5) != take(5, seed=2)
    assert flat(take(3, batch_size=10)) == epochs[0]  # whatever the batch size


@pytest.mark.parametrize("start_step", [0, 1, 4, 5, 6, 13, 5_000_000_000])
def test_start_at_any_step(start_step):
    stream = take(15, start_step=start_step - start_step % 5)
    assert take(10, start_step=start_step) == stream[start_step % 5 :][:10]
    if start_step < 15:
        assert take(10, start_step=start_step) == take(25)[start_step : start_step + 10]


@pytest.mark.parametrize("batch_size", [0, -1, 24])
def test_batch_size_that_does_not_fit(batch_size):
    with pytest.raises(mnist.Error, match=f"--batch_size={batch_size} does not fit 23 training images"):
        take(1, batch_size=batch_size)


def test_batches_follow_a_given_order_from_any_batch():
    order = np.array([7, 7, 0, 22, 3] * 4 + [1, 2, 3])
    for first in (0, 1, 4):
        checked = check_order(order, 23, "test")
        stream = epoch_batches(*as_tensors(EXAMPLES), checked, 5, first).as_numpy_iterator()
        assert flat(labels.tolist() for _, labels in stream) == order[5 * first :].tolist()


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (np.arange(22), r"mine gave int64 \[22\], expected integers \[23\]"),
        (np.ones(23), "mine gave float64"),
        (np.arange(1, 24), "mine gave indices 1 to 23, expected 0 to 22"),
        (tf.range(23) - 1, "-1 to 21"),
    ],
)
def test_a_wrong_order_is_refused(order, message):
    with pytest.raises(mnist.Error, match=message):
        check_order(order, 23, "mine")


def test_images_of_idx_files_are_in_memory_once_and_as_long_as_needed(idx_folder):
    examples = data.load("mnist", str(idx_folder)).train
    expected = examples.images.copy()
    tensor, _ = as_tensors(examples)
    assert np.shares_memory(np.frombuffer(memoryview(tensor), np.uint8), examples.images)
    del examples
    gc.collect()
    np.testing.assert_array_equal(tensor, expected)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is read as Linux reports it")
def test_a_pipeline_makes_no_copy_of_the_images():
    count = 200_000  # 150 MiB
    images = readers.empty_aligned(count * 784).reshape(count, 28, 28, 1)
    images[:] = 1

    def resident():
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) * 1024

    before = resident()
    batches = iter(train_batches(data.Examples(images, images[:, 0, 0, 0].copy()), 64, seed=0))
    next(batches)
    assert resident() - before < images.nbytes / 2


@pytest.mark.parametrize("layout", ["unaligned", "read-only", "strided"])
def test_any_array_gives_the_same_batches(layout):
    images, labels = random_examples(60)
    images = images[..., np.newaxis]
    expected = next(iter(train_batches(data.Examples(images, labels), 20, seed=0)))[0].numpy()
    other = readers.empty_aligned(images.size + 1)[int(layout == "unaligned") :][: images.size].reshape(images.shape)
    other[:] = images
    other.flags.writeable = layout != "read-only"
    other = np.repeat(images, 2, axis=0)[::2] if layout == "strided" else other
    batch = next(iter(train_batches(data.Examples(other, labels), 20, seed=0)))[0]
    np.testing.assert_array_equal(batch, expected)
