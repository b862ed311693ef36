"""The network with more channels, trained by the recipe of `record`, as a teacher for `distillation`.

Zagoruyko and Komodakis, "Wide Residual Networks" (arXiv:1605.07146), for the width. The layers are the same as in the
CNN.

    python -m mnist.research.wide --width=2 --workdir=runs/teacher_1 --flagfile=scripts/recipes/teacher.flags
"""

from mnist import train
from mnist.research.record import CentredCNN, Recipe
from mnist.settings import Setting

import keras


@keras.saving.register_keras_serializable(package="mnist")
class WideCNN(CentredCNN):
    """The network of `record` with `width` times as many channels in each layer."""

    def __init__(self, *, width=2, **kwargs):
        self.width = width
        super().__init__(**kwargs)

    def get_config(self):
        return super().get_config() | {"width": self.width}


if __name__ == "__main__":
    width = Setting(2, "Factor for the channels of each layer.", low=1, high=8)
    train.launch(Recipe, model=lambda width=width: WideCNN(width=width))
