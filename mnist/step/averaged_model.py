"""The model with the averages of an optimizer that has `use_ema`."""

from mnist.model import copy_model


class AveragedModel:
    """A copy of a `keras.Model`, its attribute `model`, with the averages that its optimizer keeps of the weights.

    `fit` ends with these averages as the weights.
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
            copies[id(variable)].assign(
                variable
            )  # by identity, since a layer frozen in the model is trainable in the copy
            variable.assign(value)
