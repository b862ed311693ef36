"""Refuses a step whose state no checkpoint would hold, and computes a digest of what the traced step computes."""

import functools
import hashlib
import json
import re
import warnings

from mnist import Error

import tensorflow as tf
from absl import logging

_READS = ("ReadVariableOp", "LookupTableFindV2", "LookupTableSizeV2")
# Keys of metrics.jsonl and results.json, to which the names of scalars and metrics add a prefix.
RESERVED = ("step", "epoch", "seconds")
# Attributes of operations that do not change what they compute.
_IS_NAME = re.compile(r"_(?!XlaMustCompile).*|shared_name|container|token|config_proto").fullmatch


def check_step(train_step, variables, jit_compile):
    """Checks a traced step before anything is written.

    Args:
      train_step: the concrete function of one step, of `step.compile_step`.
      variables: all variables that a checkpoint holds, a dict from names to `tf.Variable`s.
      jit_compile: the `tf.function` of the step if XLA is to compile it, else None.

    Returns: the digest of the step, see `digest_of`.
    Raises: `mnist.Error` for a step whose state no checkpoint would hold, whose scalars are not numbers, or that XLA
      cannot compile.
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
                f"the step uses the variable {variable.name}, which checkpoints would not hold. Make it, or the "
                "model, layer or optimizer that has it, an attribute of the step."
            )
    handles = {id(variable.handle) for variable in graph.variables}
    states = [x for outer, x in graph.captures if outer.dtype in (tf.resource, tf.variant) and id(outer) not in handles]
    for operation in [operation for state in states for operation in state.consumers()]:
        if operation.type not in _READS:
            raise Error(
                f"the step's {operation.type} uses what checkpoints would not hold, as a dataset's position or "
                "a table: keep such things in variables, attributes of the step."
            )
    definition = graph.as_graph_def()
    for node in [*definition.node, *(node for function in definition.library.function for node in function.node_def)]:
        if "PyFunc" in node.op:
            logging.warning("The step calls Python: no checkpoint holds the state of that code, as NumPy's draws.")
        if "seed" in node.attr and not node.op.startswith("Cudnn"):  # such an operation counts its draws itself
            raise Error(
                f"the step draws with {node.op}, otherwise after a resume: use tf.random.stateless_* or "
                "tf.image.stateless_* with self.random_seed('a name')."
            )


def _check_scalars(scalars):
    if not isinstance(scalars, dict) or not {"loss", "accuracy"} <= scalars.keys():
        raise Error("the step does not return a dict of scalars with 'loss' and 'accuracy' among them.")
    for name, value in scalars.items():
        if name in RESERVED:
            raise Error(f"the step has a scalar {name!r}, which the files of a run have already: give it another name.")
        if getattr(value, "shape", None) != () or not (
            value.dtype.is_bool or value.dtype.is_integer or value.dtype.is_floating
        ):
            found = f"{value.dtype.name} {value.shape}" if hasattr(value, "shape") else f"a {type(value).__name__}"
            raise Error(f"the step's {name!r} is {found}, expected a number for TensorBoard.")


def _check_compilation(function, train_step):
    """Compiles the step alone, because the error of the loop around it would fill a screen."""
    specs = train_step.structured_input_signature[0]
    batch = [tf.zeros([size or 1 for size in x.shape], x.dtype) for x in specs]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Without a device TensorFlow draws a random number to find one, which the watch would refuse.
            function.experimental_get_compiler_ir(*batch)(stage="hlo", device_name=batch[0].device)
    except ValueError as error:
        operation = re.search(r"unsupported operations .*?: (\w+)", str(error))
        what = f"the operation {operation[1]} of " if operation else ""
        raise Error(f"XLA cannot compile {what}this step: leave out --jit_compile.") from None


def written_variables(graph, variables):
    """Returns the part of `variables`, a list of `tf.Variable`s, that the graph of a function may write to."""
    outer_of = {id(inner): id(outer) for outer, inner in graph.captures}
    written = set()
    for operation in graph.get_operations():
        try:
            reads = operation.get_attr("_read_only_resource_inputs")  # only operations that call functions have it
        except ValueError:
            reads = range(len(operation.inputs)) if operation.type in _READS else ()
        written |= {outer_of.get(id(x)) for i, x in enumerate(operation.inputs) if i not in reads}
    return [variable for variable in variables if id(variable.handle) in written]


def digest_of(train_step, variables):
    """Returns a digest of what the updates of a step depend on: operations, constants, and the place of each variable.

    It is the same in any process with the same code and versions, whatever names Keras gives the layers. Scalars that
    are only shown and texts that are only printed have no effect on it. It does not see Python within the graph, as in
    `tf.numpy_function`.

    Args:
      train_step: the concrete function of one step.
      variables: all variables that a checkpoint holds, a dict from names to `tf.Variable`s.

    Returns: SHA-256 in hexadecimal.
    """
    graph = train_step.graph
    names = {id(variable.handle): name for name, variable in variables.items()}
    captured = {inner.op.name: names.get(id(outer)) or _digest_of_tensor(outer) for outer, inner in graph.captures}
    # Captures are named in the rows of their consumers. Their own rows would depend on what captured them first, which
    # may be something that is only shown.
    nodes = [operation.node_def for operation in _updates(graph) if operation.name not in captured]
    return _Digests(graph.as_graph_def().library.function).of(nodes, captured)


def _updates(graph):
    """Returns the operations that write variables and all that they depend on, in the order of the graph."""
    operations = graph.get_operations()
    takes_variable = [any(x.dtype == tf.resource for x in operation.inputs) for operation in operations]
    waiting = [op for op, takes in zip(operations, takes_variable, strict=True) if takes and op.type not in _READS]
    needed = set()
    while waiting:
        operation = waiting.pop()
        if operation.name not in needed:
            needed.add(operation.name)
            waiting += [x.op for x in operation.inputs]
    return [operation for operation in operations if operation.name in needed]


class _Digests:
    """The digests of operations and of the functions that they call, whose names TensorFlow counts up."""

    def __init__(self, functions):
        self._functions = {function.signature.name: function for function in functions}

    def of(self, nodes, given, results=()):
        """Returns a digest of operations in order.

        Args:
          nodes: a list of `NodeDef`s. The digest replaces the name of each by its position.
          given: a dict from names of inputs to what stands for them.
          results: what is returned, in the notation of the inputs of a `NodeDef`.
        """
        positions = {node.name: i for i, node in enumerate(nodes)} | given

        def place(text):  # NAME:OUTPUT
            name, *output = text.split(":")
            return [positions[name], *output]

        rows = [
            [
                given.get(node.name, node.op),
                {key: self._plain(node.attr[key]) for key in sorted(node.attr) if not _IS_NAME(key)},
                [place(text) for text in node.input if not text.startswith("^")],
            ]
            for node in nodes
        ]
        return hashlib.sha256(json.dumps([rows, [place(text) for text in results]]).encode()).hexdigest()

    @functools.cache  # noqa: B019 (an instance lives as long as one call of digest_of)
    def _of_function(self, name):
        function = self._functions[name]
        arguments = {argument.name: f"argument {i}" for i, argument in enumerate(function.signature.input_arg)}
        results = [function.ret[result.name] for result in function.signature.output_arg]
        return self.of(function.node_def, arguments, results)

    def _plain(self, attribute):
        if attribute.HasField("func"):
            return self._of_function(attribute.func.name)
        if attribute.list.func:
            return [self._of_function(function.name) for function in attribute.list.func]
        return attribute.SerializeToString(deterministic=True).hex()


def _digest_of_tensor(tensor):
    if tensor.dtype in (tf.resource, tf.variant):
        return tensor.dtype.name
    return hashlib.sha256(tf.io.serialize_tensor(tensor).numpy()).hexdigest()
