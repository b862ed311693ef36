"""A step once it is traced: what no checkpoint would hold is refused, what it computes has a digest."""

import functools
import hashlib
import json
import re

from mnist import Error

import tensorflow as tf
from absl import logging

_READS = ("ReadVariableOp", "LookupTableFindV2", "LookupTableSizeV2")
# Attributes that say nothing of what is computed.
_IS_NAME = re.compile(r"_(?!XlaMustCompile).*|shared_name|container|token|config_proto").fullmatch


def check_step(train_step, variables, jit_compile):
    """Raises `mnist.Error` for a step whose state no checkpoint would hold, whose scalars are no numbers, or that XLA
    cannot compile.

    Args:
      train_step: the concrete function of one step, of `step.compile_step`.
      variables: all that a checkpoint holds, a dict from names to `tf.Variable`s.
      jit_compile: the `tf.function` of the step if it is to be compiled, None if not.

    Returns: a digest of what the step computes, see `digest_of`.
    """
    _check_state(train_step.graph, variables)
    _check_scalars(train_step.structured_outputs[0])
    if jit_compile:
        _check_compilation(jit_compile, train_step)
    return digest_of(train_step, variables)


def _check_state(graph, variables):
    held = {id(variable) for variable in variables.values()}
    for variable in graph.variables:
        if id(variable) not in held:
            raise Error(
                f"the step uses the variable {variable.name}, which checkpoints would not hold: make it, or the "
                "model, layer or optimizer that has it, an attribute of the step."
            )
    handles = {id(variable.handle) for variable in graph.variables}
    for external, internal in graph.captures:
        if external.dtype in (tf.resource, tf.variant) and id(external) not in handles:
            for operation in internal.consumers():
                if operation.type not in _READS:
                    raise Error(
                        f"the step's {operation.type} uses what checkpoints would not hold, as a dataset's position or "
                        "a table: keep such things in variables, attributes of the step."
                    )
    for node in _all_nodes(graph):
        if "PyFunc" in node.op:
            logging.warning("The step calls Python: what that keeps to itself, as NumPy's draws, is in no checkpoint.")
        if "seed" in node.attr and not node.op.startswith("Cudnn"):  # it counts its draws itself
            raise Error(
                f"the step draws with {node.op}, otherwise after a resume: use tf.random.stateless_* or "
                "tf.image.stateless_* with self.random_seed('a name')."
            )


def _check_scalars(scalars):
    if not isinstance(scalars, dict) or not {"loss", "accuracy"} <= scalars.keys():
        raise Error("the step does not return a dict of scalars with 'loss' and 'accuracy' among them.")
    for name, value in scalars.items():
        if getattr(value, "shape", None) != () or not (
            value.dtype.is_bool or value.dtype.is_integer or value.dtype.is_floating
        ):
            found = f"{value.dtype.name} {value.shape}" if hasattr(value, "shape") else f"a {type(value).__name__}"
            raise Error(f"the step's {name!r} is {found}, expected a number for TensorBoard.")


def _check_compilation(function, train_step):
    """To find it out in the loop would fill a screen."""
    images, labels = (tf.zeros([size or 1 for size in x.shape], x.dtype) for x in train_step.inputs[:2])
    try:
        function.experimental_get_compiler_ir(images, labels)(stage="hlo")
    except ValueError as error:
        operation = re.search(r"unsupported operations .*?: (\w+)", str(error))
        what = f"the operation {operation[1]} of " if operation else ""
        raise Error(f"XLA cannot compile {what}this step: leave out --jit_compile.") from None


def written_variables(function, arguments, variables):
    """Which of `variables`, a list of `tf.Variable`s, a function of tensors writes to, or may write to."""
    graph = tf.function(function).get_concrete_function(*arguments).graph
    inner = {id(internal): id(external) for external, internal in graph.captures}
    written = set()
    for operation in graph.get_operations():
        try:
            reads = operation.get_attr("_read_only_resource_inputs")  # of one that calls functions
        except ValueError:
            reads = range(len(operation.inputs)) if operation.type in _READS else ()
        written |= {inner.get(id(x)) for i, x in enumerate(operation.inputs) if i not in reads}
    return [variable for variable in variables if id(variable.handle) in written]


def _all_nodes(graph):
    """The operations of a graph and of the functions that it calls."""
    definition = graph.as_graph_def()
    return [*definition.node, *(node for function in definition.library.function for node in function.node_def)]


def digest_of(train_step, variables):
    """A digest of what the step's updates depend on: operations, constants, and which variable is where.

    The same in any process with the same code and versions, whatever Keras calls the layers. What is only printed or
    shown has no part in it. Of Python within the graph, as in `tf.numpy_function`, it knows nothing.

    Args:
      train_step: the concrete function of one step.
      variables: all that a checkpoint holds, a dict from names to `tf.Variable`s.

    Returns: SHA-256 in hexadecimal.
    """
    graph = train_step.graph
    operations = graph.get_operations()
    names = {id(variable.handle): name for name, variable in variables.items()}
    captured = {inner.op.name: names.get(id(outer)) or _digest_of_tensor(outer) for outer, inner in graph.captures}
    # Updates take a variable itself, not its value; whatever they do not depend on is left out.
    takes_variable = [any(x.dtype == tf.resource for x in operation.inputs) for operation in operations]
    waiting = [op for op, takes in zip(operations, takes_variable, strict=True) if takes and op.type not in _READS]
    needed = set()
    while waiting:
        operation = waiting.pop()
        if operation.name not in needed:
            needed.add(operation.name)
            waiting += [x.op for x in operation.inputs]
    functions = _Functions(graph.as_graph_def().library.function)
    # What comes from outside stands where the graph first took it, which what is only shown may have been.
    needed -= captured.keys()
    return functions.digest([operation.node_def for operation in operations if operation.name in needed], captured)


class _Functions:
    """The functions that a graph calls, told apart by what they compute: TensorFlow counts up their names."""

    def __init__(self, functions):
        self._functions = {function.signature.name: function for function in functions}

    def digest(self, nodes, given, results=()):
        """A digest of operations in order.

        Args:
          nodes: a list of `NodeDef`s, each known to others by its position.
          given: a dict from names to what stands for them, of what comes from outside.
          results: what is returned, as `NodeDef`s name their inputs.
        """
        positions = {node.name: i for i, node in enumerate(nodes)} | given

        def place(text):  # NAME:OUTPUT
            name, *output = text.split(":")
            return [positions[name], *output]

        rows = [
            [
                given.get(node.name, node.op),
                {k: self._plain(node.attr[k]) for k in sorted(node.attr) if not _IS_NAME(k)},
                [place(text) for text in node.input if not text.startswith("^")],
            ]
            for node in nodes
        ]
        return hashlib.sha256(json.dumps([rows, [place(text) for text in results]]).encode()).hexdigest()

    @functools.cache  # noqa: B019 (it lives as long as one call of digest_of)
    def _digest_of(self, name):
        function = self._functions[name]
        arguments = {argument.name: f"argument {i}" for i, argument in enumerate(function.signature.input_arg)}
        results = [function.ret[result.name] for result in function.signature.output_arg]
        return self.digest(function.node_def, arguments, results)

    def _plain(self, attribute):
        if attribute.HasField("func"):
            return self._digest_of(attribute.func.name)
        if attribute.list.func:
            return [self._digest_of(function.name) for function in attribute.list.func]
        return attribute.SerializeToString(deterministic=True).hex()


def _digest_of_tensor(tensor):
    if tensor.dtype in (tf.resource, tf.variant):
        return tensor.dtype.name
    return hashlib.sha256(tf.io.serialize_tensor(tensor).numpy()).hexdigest()
