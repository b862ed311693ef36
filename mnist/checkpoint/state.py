"""The plain state of a step, `step.state`, as JSON that gives equal values again."""

import base64

from mnist import Error

import numpy as np


def dump(state):
    """Returns a `step.state` as plain JSON. Raises: `mnist.Error` that names a value of another type."""
    return _encode(state, "self.state", {})


def restore(state, dumped):
    """Replaces the content of a `step.state` by what `dump` was given."""
    values = _decode(dumped)
    state.clear()
    state.update(values)


def _encode(value, name, seen):
    """Returns a value as JSON. `seen` is a dict of all mutable values before it, from ids to names and values."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if not isinstance(value, np.generic):
        owner = _owner_of(value)
        if id(owner) in seen:
            raise Error(f"{name} is also {seen[id(owner)][0]}, which a resume would make two of: keep it once.")
        seen[id(owner)] = name, owner  # which keeps its id
    if type(value) is list:
        return [_encode(inner, f"{name}[{i}]", seen) for i, inner in enumerate(value)]
    if type(value) is dict and all(type(key) is str for key in value):
        return {"dict": {key: _encode(inner, f"{name}[{key!r}]", seen) for key, inner in value.items()}}
    if (type(value) is np.ndarray or isinstance(value, np.generic)) and value.dtype.kind in "biufc":
        order = "F" if value.flags.fnc else "C"  # in which sums add up
        array = [value.dtype.str, list(value.shape), base64.b64encode(value.tobytes(order)).decode()]
        return {"array": array, "scalar": isinstance(value, np.generic), "order": order}
    if type(value) is np.random.Generator and type(value.bit_generator).__module__.startswith("numpy."):
        bits = value.bit_generator
        seeds = bits.seed_seq  # None if a key made it
        seeds = seeds and {key: np.asarray(x).tolist() for key, x in seeds.state.items()}  # counts what spawn() gave
        return {"generator": type(bits).__name__, "seeds": seeds, "bits": _encode(bits.state, name, {})}
    raise Error(
        f"{name} is a {type(value).__name__}, expected numbers, texts, booleans, None, lists, "
        "dicts with texts as keys, arrays and generators of NumPy."
    )


def _owner_of(value):
    """Returns the object in which a value keeps what may change: of a view its array, of a generator its bits."""
    if isinstance(value, np.random.Generator):
        return value.bit_generator
    return value.base if isinstance(value, np.ndarray) and value.base is not None else value


def _decode(value):
    if isinstance(value, list):
        return [_decode(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    if "array" in value:
        dtype, shape, content = value["array"]
        order = value.get("order", "C")  # an older version did not save it
        array = np.frombuffer(base64.b64decode(content), dtype).reshape(shape, order=order)
        return array[()] if value["scalar"] else array.copy(order)
    if "generator" in value:
        seeds = value["seeds"]
        bits = getattr(np.random, value["generator"])(seeds and np.random.SeedSequence(**seeds))
        bits.state = _decode(value["bits"])
        return np.random.Generator(bits)
    return {key: _decode(inner) for key, inner in value["dict"].items()}
