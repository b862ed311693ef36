"""Norms and histograms of weights, updates and gradients, layer by layer."""

import collections

import numpy as np


def names_of(model, variables=None):
    """Returns a list of the layer and the name of each variable, as `("conv1", "kernel")`, all different.

    The variables are Keras variables and `tf.Variable`s. Default: the trainable variables of the model.
    """
    names, times = [], collections.Counter()
    for variable in model.trainable_variables if variables is None else variables:
        path = variable.path if hasattr(variable, "path") else variable.name.partition(":")[0]
        *layers, name = path.split("/")
        layer = "/".join(layers[1:] if layers[:1] == [model.name] and layers[1:] else layers) or name
        base = layer
        while (layer, name) in names:  # because two models in one have layers of equal names
            times[base, name] += 1
            layer = f"{base}_{times[base, name] + 1}"
        names.append((layer, name))
    return names


def measure_norms(names, before, after, gradients):
    """Measures an update by the L2 norms of each layer and of all layers together.

    Args:
      names: a list of pairs, as `names_of` returns it.
      before, after: lists of float32 arrays. The trainable variables before and after the update.
      gradients: a dict from positions in these lists to float32 arrays. Variables without a gradient are missing.

    Returns: a dict from `weights/<layer>` (after the update), `gradients/<layer>` and `updates/<layer>` to floats. The
      norm of an update is divided by the norm of the weights.
    """
    scalars, layers = {}, collections.defaultdict(list)
    moves = [square(new - old) for old, new in zip(before, after, strict=True)]
    parts = list(zip(map(square, before), map(square, after), moves, strict=True))
    squares = {i: square(gradient) for i, gradient in gradients.items()}
    for i, (layer, _) in enumerate(names):
        layers[layer].append(i)
    for layer, places in [*layers.items(), ("all layers", range(len(names)))]:
        old, new, move = np.sqrt([sum(parts[i][k] for i in places) for k in range(3)])
        scalars[f"weights/{layer}"] = new
        if old:
            scalars[f"updates/{layer}"] = move / old
        if found := [squares[i] for i in places if i in squares]:
            scalars[f"gradients/{layer}"] = np.sqrt(sum(found))
    return scalars


def measure_histograms(names, after, gradients):
    """Returns the `counts` of each variable and gradient, under `weights/<layer>/<name>`, `gradients/<layer>/<name>`.

    Takes arguments as `measure_norms` does.
    """
    histograms = {}
    for i, (layer, name) in enumerate(names):
        histograms[f"weights/{layer}/{name}"] = counts(after[i])
        if i in gradients:
            histograms[f"gradients/{layer}/{name}"] = counts(gradients[i])
    return histograms


def square(array):
    """Returns the sum of squares of an array, a float, computed in float64."""
    return float(np.square(array, dtype=np.float64).sum())


def counts(array, bins=30):
    """Returns a histogram of the finite values: lower edge, upper edge and count of each bin, float64 `[bins, 3]`."""
    array = array[np.isfinite(array)].astype(np.float64)
    low, high = (array.min(), array.max()) if array.size else (0.0, 0.0)
    if not (np.diff(np.linspace(low, high, bins + 1)) > 0).all():  # too close for float64 to separate the edges
        margin = max(1e-6, 1e-6 * abs(low))
        low, high = low - margin, high + margin
    numbers, edges = np.histogram(array, bins, (low, high))
    return np.stack([edges[:-1], edges[1:], numbers], axis=1)
