"""The model with the averages of an optimizer that has `use_ema`."""

from mnist.model import copy_model


class AveragedModel:
    """A copy of a `keras.Model`, its attribute `model`, with the averages that its optimizer keeps of the weights.

    `fit` ends with these averages as the weights.
    """

    def __init__(self, model, optimizer):
        self._source, self._optimizer, self.model = model, optimizer, copy_model(model)

    def update(self, trained):
        """Copies the averages of `trained`, a list of `tf.Variable`s, and the values of all other variables."""
        copies = {}
        for copied, variable in zip(self.model.variables, self._source.variables, strict=True):
            copied.assign(variable)
            copies[id(variable.value)] = copied
        weights = [variable.numpy() for variable in trained]
        self._optimizer.finalize_variable_values(trained)  # no public name of Keras reads the averages
        for variable, value in zip(trained, weights, strict=True):
            if id(variable) in copies:  # by identity, since a layer frozen in the model is trainable in the copy
                copies[id(variable)].assign(variable)
            variable.assign(value)
