"""The plain state of a step, `step.state`, as JSON that gives equal values again."""

import base64

from mnist import Error

import numpy as np


def dump(state):
    """Returns a `step.state` as plain JSON. Raises: `mnist.Error` that names a value of another type."""
    return _encode(state, "self.state")


def restore(state, dumped):
    """Replaces the content of a `step.state` by what `dump` was given."""
    values = _decode(dumped)
    state.clear()
    state.update(values)


def _encode(value, name):
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) is list:
        return [_encode(inner, f"{name}[{i}]") for i, inner in enumerate(value)]
    if type(value) is dict and all(type(key) is str for key in value):
        return {"dict": {key: _encode(inner, f"{name}[{key!r}]") for key, inner in value.items()}}
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biufc":
        content = base64.b64encode(np.ascontiguousarray(value)).decode()
        return {"array": [value.dtype.str, list(value.shape), content], "scalar": isinstance(value, np.generic)}
    if isinstance(value, np.random.Generator):
        bits = value.bit_generator
        seeds = {key: np.asarray(x).tolist() for key, x in bits.seed_seq.state.items()}  # counts what spawn() gave
        return {"generator": type(bits).__name__, "seeds": seeds, "bits": _encode(bits.state, name)}
    raise Error(
        f"{name} is a {type(value).__name__}, expected numbers, texts, booleans, None, lists, "
        "dicts with texts as keys, arrays and generators of NumPy."
    )


def _decode(value):
    if isinstance(value, list):
        return [_decode(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    if "array" in value:
        dtype, shape, content = value["array"]
        array = np.frombuffer(base64.b64decode(content), dtype).reshape(shape)
        return array[()] if value["scalar"] else array.copy()
    if "generator" in value:
        bits = getattr(np.random, value["generator"])(np.random.SeedSequence(**value["seeds"]))
        bits.state = _decode(value["bits"])
        return np.random.Generator(bits)
    return {key: _decode(inner) for key, inner in value["dict"].items()}
