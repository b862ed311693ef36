"""The values and the code that methods of a step read beside their arguments."""

import collections
import contextlib
import dis
import functools
import importlib.util
import sys
import types
from collections.abc import Mapping

from mnist.checkpoint.comparable import attributes_of, is_described, is_own, lookup

# Attributes with the function of a property, a cached property, a `tf.function`, a method, a cached function.
_INNER = ("fget", "func", "python_function", "__func__", "__wrapped__")


def own_classes(step):
    """Returns the classes of a `TrainStep` that are code of the user, the subclass first."""
    return [cls for cls in type(step).__mro__ if is_own(cls)]


def read_by(step, names):
    """Returns what methods of a step read, also through functions that they call, a dict from names to values.

    These are functions, values of modules, closures and classes, and as `self.<name>` attributes of the step. Of what
    these hold at any depth, they are the functions. Code and values of libraries and of `TrainStep` are left out.

    Args:
      step: a `TrainStep`.
      names: strings. The names of the methods.
    """
    found, seen, opened, classes = {}, set(), {id(step): step}, own_classes(step)

    def keep(name, value):
        while found.get(name, value) is not value:  # two modules, or two classes, may have one name
            name = f"another {name}"
        found[name] = value

    waiting = [(f"{cls.__name__}.{name}", vars(cls)[name]) for cls in classes for name in names if name in vars(cls)]
    waiting += [(f"self.{name}", vars(step)[name]) for name in names if name in vars(step)]
    inner = []
    while waiting or inner:
        is_inner = not waiting
        name, value = inner.pop() if is_inner else waiting.pop()
        if id(value) not in opened:
            opened[id(value)] = value
            inner += _parts_of(value, name)
        function, cls = _function_in(value), value if isinstance(value, type) else type(value)
        if function:
            if is_own(function) and function not in seen:
                seen.add(function)
                keep(name, function)
                waiting += _reads(function, step, classes)
        elif isinstance(value, types.ModuleType) or (isinstance(value, type) and not is_own(value)):
            continue
        elif value is not cls and not is_inner:
            keep(name, value)
        for base in cls.__mro__ if not function else ():
            if is_own(base) and base not in classes and base not in seen:
                seen.add(base)
                waiting += [(f"{base.__name__}.{key}", x) for key, x in vars(base).items() if not _is_noise(key, x)]
    return found


def _parts_of(value, name):
    """Returns names and values of what may have functions in a collection, a partial or an object of the user."""
    if isinstance(value, functools.partial):
        parts = {".func": value.func, ".args": value.args, ".keywords": value.keywords}
    elif isinstance(value, Mapping):
        parts = {f"[{key!r:.50}]": value[key] for key in value}
    elif isinstance(value, (list, tuple, collections.deque)):
        parts = {f"[{i}]": part for i, part in enumerate(value)}
    elif is_own(type(value)) and not is_described(value):
        parts = {f".{key}": part for key, part in attributes_of(value).items()}
    else:
        parts = {}
    return [(name + end, part) for end, part in parts.items() if not isinstance(part, (int, float, str))]


def _is_noise(name, value):
    return name.startswith("__") and not isinstance(value, types.FunctionType)


def _function_in(value):
    """Returns the Python function of a method, a property, a `tf.function` or a cached function, or None."""
    if not isinstance(value, (type, types.ModuleType, functools.partial)) and not is_own(type(value)):
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
            yield from _reads_of_module(value, name, names, [])
        elif name in scope:
            yield name, value
        yield from [(f"{cls.__name__}.{name}", vars(cls)[name]) for cls in classes if name in vars(cls)]
        if name in vars(step):
            yield f"self.{name}", vars(step)[name]

    for module in _imported_by(function):
        yield from _reads_of_module(module, module.__name__, names, [])
    yield from [(f"{function.__name__}.{name}", value) for name, value in vars(function).items()]


def _reads_of_module(module, name, names, outer):
    """Yields what is read of a module of the user, and of those in it. `outer` are the modules that it is read from."""
    outer = [*outer, module]
    for key, value in [(key, vars(module)[key]) for key in names if key in vars(module)]:
        if not isinstance(value, types.ModuleType):
            yield f"{name}.{key}", value
        elif value not in outer and is_own(value):
            yield from _reads_of_module(value, f"{name}.{key}", names, outer)


def _imported_by(function):
    """Returns the modules of the user that a function imports itself. It imports them, as the function will do."""
    found = []
    for name in {name for code in _codes_in(function.__code__) for name in _imports_in(code)}:
        with contextlib.suppress(Exception):  # such as where the name is of a function
            name = importlib.util.resolve_name(name, function.__globals__.get("__package__"))
            if name not in sys.modules and "-packages" in str(importlib.util.find_spec(name.partition(".")[0])):
                continue
            found += [module for module in [importlib.import_module(name)] if is_own(module)]
    return found


@functools.cache
def _imports_in(code):
    """Returns the names of the modules in the imports of a code object, also of what may be one, `from x import y`."""
    steps, found = list(dis.get_instructions(code)), []
    for level, names, step in zip(steps, steps[1:], steps[2:], strict=False):
        if step.opname == "IMPORT_NAME":
            parent, dots = step.argval, "." * level.argval
            within = f"{dots}{parent}." if parent else dots  # `from . import y` has no parent
            found += [dots + parent, parent.partition(".")[0]] if not dots else [dots + parent]
            found += [within + name for name in names.argval or ()]
    return found


def _codes_in(code):
    inner = [_codes_in(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return [code, *(code for codes in inner for code in codes)]


def _names_in(code):
    return {name for inner in _codes_in(code) for name in inner.co_names}
