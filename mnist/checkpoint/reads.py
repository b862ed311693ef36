"""The values and the code that methods of a step read beside their arguments."""

import contextlib
import types

from mnist.checkpoint.comparable import is_own, lookup

# Attributes with the function of a property, a partial, a `tf.function`, a method, a cached function.
_INNER = ("fget", "func", "python_function", "__func__", "__wrapped__")


def own_classes(step):
    """Returns the classes of a `TrainStep` that are code of the user, the subclass first."""
    return [cls for cls in type(step).__mro__ if is_own(cls)]


def read_by(step, names):
    """Returns what methods of a step read, also through functions that they call, a dict from names to values.

    These are functions, values of modules, closures and classes, and as `self.<name>` attributes of the step. Code and
    values of libraries and of `TrainStep` are left out.

    Args:
      step: a `TrainStep`.
      names: strings. The names of the methods.
    """
    found, seen, classes = {}, set(), own_classes(step)

    def keep(name, value):
        while found.get(name, value) is not value:  # two modules, or two classes, may have one name
            name = f"another {name}"
        found[name] = value

    waiting = [(f"{cls.__name__}.{name}", vars(cls)[name]) for cls in classes for name in names if name in vars(cls)]
    waiting += [(f"self.{name}", vars(step)[name]) for name in names if name in vars(step)]
    while waiting:
        name, value = waiting.pop()
        function, cls = _function_in(value), value if isinstance(value, type) else type(value)
        if function:
            if is_own(function) and function not in seen:
                seen.add(function)
                keep(name, function)
                waiting += _reads(function, step, classes)
        elif isinstance(value, types.ModuleType) or (isinstance(value, type) and not is_own(value)):
            continue
        elif value is not cls:
            keep(name, value)
        if not function and is_own(cls) and cls not in classes and cls not in seen:
            seen.add(cls)
            waiting += [
                (f"{cls.__name__}.{key}", inner) for key, inner in vars(cls).items() if not _is_noise(key, inner)
            ]
    return found


def _is_noise(name, value):
    return name.startswith("__") and not isinstance(value, types.FunctionType)


def _function_in(value):
    """Returns the Python function of a method, a property, a `tf.function` or a cached function, or None."""
    if not isinstance(value, (type, types.ModuleType)) and not is_own(type(value)):
        for name in _INNER:
            if not isinstance(value, types.FunctionType):
                value = lookup(value, name) or value
    return value if isinstance(value, types.FunctionType) else None


def _reads(function, step, classes):
    """Yields names and values of what a function reads itself."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # of an empty cell
            yield name, cell.cell_contents
    names, scope = sorted(_names_in(function.__code__)), function.__globals__
    for name in names:
        value = scope.get(name)
        if isinstance(value, types.ModuleType) and is_own(value):
            yield from [(f"{name}.{inner}", vars(value)[inner]) for inner in names if inner in vars(value)]
        elif name in scope:
            yield name, value
        yield from [(f"{cls.__name__}.{name}", vars(cls)[name]) for cls in classes if name in vars(cls)]
        if name in vars(step):
            yield f"self.{name}", vars(step)[name]


def _names_in(code):
    inner = [_names_in(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return set(code.co_names).union(*inner)
