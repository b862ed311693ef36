"""The same bits as model.fit: weights, optimizer slots, the loss and the accuracy of each epoch."""

from mnist import data
from mnist.model import CNN

import keras
import numpy as np
import pytest
from compare_with_fit import compare, difference, make_features, make_optimizers, train_with_loop
from conftest import nightly_but

EPOCHS, BATCH_SIZE = 5, 64  # 1,500 images make 24 steps an epoch, and the last batch has 28 images


@pytest.mark.parametrize("name", nightly_but(["adam", "sgd_momentum"], make_optimizers(1)))
def test_all_bits_equal_model_fit(name, digits):
    epochs = EPOCHS if name == "adam" else 2
    rows = compare(make_optimizers(24 * epochs)[name], digits.train, batch_size=BATCH_SIZE, epochs=epochs)
    assert all(set(row) >= {"weights", "slots", "loss", "accuracy"} and not any(row.values()) for row in rows)
    assert len(rows) == epochs
    assert "evaluated" in rows[-1]


# The row "together" covers these. The script compares each of them alone.
TOGETHER = {
    *("kernel_regularizer", "activity_regularizer", "add_loss", "add_loss_regularizer_dropout", "activity_layer"),
    *("constraint", "batch_norm", "dropout", "noise"),
    *("use_ema", "ema_overwrite", "clipvalue", "weight_decay", "amsgrad"),
}


@pytest.mark.parametrize("name", [n for n in make_features() if not hasattr(keras.optimizers, n) and n not in TOGETHER])
def test_features_of_keras_have_the_bits_of_fit(name, digits):
    train = data.Examples(*(part[:284] for part in digits.train))  # 5 steps an epoch, and the last batch has 28 images
    make_model, make_optimizer = make_features()[name]
    rows = compare(make_optimizer, train, batch_size=BATCH_SIZE, epochs=2, make_model=make_model)
    assert len(rows) == 2
    assert not any(value for row in rows for value in row.values())


@pytest.mark.parametrize("values", [(0.0, np.nan), (np.nan, 0.0), (np.nan, np.nan), (0.0, -0.0), (0.0, np.inf)])
def test_the_comparison_detects_nan_on_either_side_and_the_sign_of_zero(values):
    assert difference(*(np.float32([value]) for value in values)) > 0


def test_the_comparison_detects_a_changed_bit_of_an_image(digits):
    images = digits.train.images.copy()
    images[7, 14, 14, 0] ^= 1
    snapshots = []
    for examples in (digits.train, digits.train._replace(images=images)):
        keras.utils.set_random_seed(0)
        optimizer = make_optimizers(24)["adam"]()
        snapshots += train_with_loop(CNN(), optimizer, examples, batch_size=BATCH_SIZE, epochs=1, seed=0)
    ours, theirs = (snapshot["weights"] for snapshot in snapshots)
    assert max(difference(a, b) for a, b in zip(ours, theirs, strict=True)) > 0
