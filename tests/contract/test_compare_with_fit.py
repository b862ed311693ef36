"""The same bits as model.fit: weights, optimizer slots, the loss and the accuracy of each epoch."""

from mnist import data

import numpy as np
import pytest
from compare_with_fit import compare, difference, make_features, make_optimizers, train_with_loop

EPOCHS, BATCH_SIZE = 3, 64  # 1,500 images make 24 steps an epoch, and the last batch has 28 images


def test_all_bits_equal_model_fit(digits):
    rows = compare(make_optimizers(24 * EPOCHS)["adam"], digits.train, batch_size=BATCH_SIZE, epochs=EPOCHS)
    assert all(set(row) >= {"weights", "slots", "loss", "accuracy"} and not any(row.values()) for row in rows)
    assert len(rows) == EPOCHS
    assert "evaluated" in rows[-1]


# Features whose model and optimizer do not meet elsewhere. The script, which nightly.sh runs, compares each alone.
PAIRS = [
    ("together", "together"),
    ("unused_head", "unused_head"),
    ("use_ema_batch_norm", "use_ema_batch_norm"),
    ("orthogonal_regularizer", "loss_scale_optimizer"),
    ("frozen", "loss_scale_factor"),
    ("frozen_batch_norm", "own_apply_gradients"),
    ("spectral_norm", "accumulation_clip_ema"),
    ("lora", "schedule"),
    ("bfloat16_logits", "clipnorm"),
    ("float16_logits", "loss_scale_overflow"),
    ("float64_logits", "callable_rate"),
    ("no_training_argument", "schedule"),
    ("recurrent_dropout", "gradient_accumulation"),
]


@pytest.mark.parametrize(("model", "optimizer"), PAIRS)
def test_features_of_keras_have_the_bits_of_fit(model, optimizer, digits):
    train = data.Examples(*(part[:284] for part in digits.train))  # 5 steps an epoch, and the last batch has 28 images
    make_model, make_optimizer = make_features()[model][0], make_features()[optimizer][1]
    rows = compare(make_optimizer, train, batch_size=BATCH_SIZE, epochs=2, make_model=make_model)
    assert len(rows) == 2
    assert not any(value for row in rows for value in row.values())


@pytest.mark.parametrize("values", [(0.0, np.nan), (np.nan, 0.0), (np.nan, np.nan), (0.0, -0.0), (0.0, np.inf)])
def test_the_comparison_detects_nan_on_either_side_and_the_sign_of_zero(values):
    assert difference(*(np.float32([value]) for value in values)) > 0


def test_the_comparison_detects_a_changed_bit_of_an_image(digits, monkeypatch):
    def train_otherwise(model, optimizer, examples, **options):
        images = examples.images.copy()
        images[7, 14, 14, 0] ^= 1
        return train_with_loop(model, optimizer, examples._replace(images=images), **options)

    monkeypatch.setattr("compare_with_fit.train_with_loop", train_otherwise)
    (row,) = compare(make_optimizers(24)["adam"], digits.train, batch_size=BATCH_SIZE, epochs=1)
    assert row["weights"] > 0
