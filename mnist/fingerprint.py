"""What the numbers of a run depend on: a resume with anything else is refused."""

import json

import keras


def fingerprint_of(step, dataset, batch_size, jit_compile, settings):
    """All that the numbers of a run depend on, as plain JSON."""
    fingerprint = {
        "batch_size": batch_size,
        "dataset": dataset.digest(),
        "jit_compile": jit_compile,
        "precision": step.model.dtype_policy.name,
        "seed": step.seed,
        "step": type(step).__name__,
        **(settings or {}),
    }
    for name, value in vars(step).items():
        if isinstance(value, keras.optimizers.Optimizer):
            config = keras.saving.serialize_keras_object(value)["config"]
            del config["name"]  # Keras counts up its optimizers: adam, adam_1, ...
            fingerprint[name] = {"class": type(value).__name__, **config}
    return json.loads(json.dumps(fingerprint))


def differences(old, new, name=""):
    """Names what differs between two nested dicts, one string each."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = dict.fromkeys([*new, *old])
        prefix = f"{name}." if name else ""
        return [d for key in keys for d in differences(old.get(key), new.get(key), prefix + key)]
    return [] if old == new else [f"{name} was {old}, is {new}"]
