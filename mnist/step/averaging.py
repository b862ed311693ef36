"""The model with the averages of an optimizer that has `use_ema`."""

from mnist.model import copy_model


class AveragedModel:
    """A copy of a model with the moving averages of its weights, with which `fit` ends.

    Args:
      model: a built `keras.Model`. It is copied.
      optimizer: a built Keras optimizer of the model, with `use_ema`.

    Attributes:
      model: a `keras.Model`. The copy.
    """

    def __init__(self, model, optimizer):
        self._source, self._optimizer, self.model = model, optimizer, copy_model(model)

    def update(self):
        """Copies the averages of trainable variables, and the values of all other variables."""
        copies = {}
        for copied, variable in zip(self.model.variables, self._source.variables, strict=True):
            copied.assign(variable)
            copies[id(variable)] = copied
        trainable = self._source.trainable_variables
        weights = [variable.value.numpy() for variable in trainable]
        self._optimizer.finalize_variable_values(trainable)  # no public name of Keras reads the averages
        for variable, value in zip(trainable, weights, strict=True):
            copies[id(variable)].assign(variable)  # by identity, because a frozen layer of the model is not in the copy
            variable.assign(value)
