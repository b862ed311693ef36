"""The same bits as model.fit: weights, optimizer slots, the loss and accuracy of each epoch."""

from mnist import data
from scripts.compare_with_fit import _difference, compare, make_features, make_optimizers

import keras
import numpy as np
import pytest

EPOCHS, BATCH_SIZE = 5, 64  # of 1,500 images: 120 steps, the last of each epoch with 28 images


@pytest.mark.parametrize("name", make_optimizers(1))
def test_bits_equal_model_fit(name):
    train = data.load("digits").train
    epochs = EPOCHS if name == "adam" else 2
    rows = compare(make_optimizers(24 * epochs)[name], train, batch_size=BATCH_SIZE, epochs=epochs)
    assert all(set(row) >= {"weights", "slots", "loss", "accuracy"} and not any(row.values()) for row in rows)
    assert len(rows) == epochs
    assert "evaluated" in rows[-1]


# What the row "together" has, too; by itself the script compares it.
TOGETHER = {
    *("kernel_regularizer", "activity_regularizer", "add_loss", "add_loss_regularizer_dropout", "activity_layer"),
    *("constraint", "batch_norm", "dropout", "noise"),
    *("use_ema", "ema_overwrite", "clipvalue", "weight_decay", "amsgrad"),
}


@pytest.mark.parametrize("name", [n for n in make_features() if not hasattr(keras.optimizers, n) and n not in TOGETHER])
def test_features_of_keras_have_the_bits_of_fit(name):
    train = data.Examples(*(part[:284] for part in data.load("digits").train))  # 5 steps an epoch, the last of 28
    make_model, make_optimizer = make_features()[name]
    rows = compare(make_optimizer, train, batch_size=BATCH_SIZE, epochs=2, make_model=make_model)
    assert len(rows) == 2
    assert not any(value for row in rows for value in row.values())


@pytest.mark.parametrize("values", [(0.0, np.nan), (np.nan, 0.0), (np.nan, np.nan), (0.0, -0.0), (0.0, np.inf)])
def test_the_comparison_sees_nan_on_either_side_and_the_sign_of_zero(values):
    assert _difference(*(np.float32([value]) for value in values)) > 0


def test_the_comparison_sees_a_last_bit():
    """Guards the guard: other data must not compare as equal."""
    train = data.load("digits").train
    images = train.images.copy()
    images[7, 14, 14, 0] ^= 1
    make = make_optimizers(24)["adam"]
    from scripts import compare_with_fit as script

    options = {"batch_size": BATCH_SIZE, "epochs": 1, "seed": 0}
    snapshots = []
    for examples in (train, train._replace(images=images)):
        script.keras.utils.set_random_seed(0)
        snapshots.append(script.train_with_loop(script.CNN(), make(), examples, **options)[0])
    ours, theirs = snapshots
    assert max(script._difference(a, b) for a, b in zip(ours["weights"], theirs["weights"], strict=True)) > 0
