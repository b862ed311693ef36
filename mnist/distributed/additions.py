"""Finds the variables that a function adds to, because a slice of a batch adds another amount than the whole batch."""

import re

# Operations that pass a value on, and that add two values.
_PASS = ("Identity", "Cast", "Reshape")
_ADD = ("Add", "AddV2", "AddN", "Sub", "TensorScatterAdd", "TensorScatterSub")
_ASSIGN_ADD = ("AssignAddVariableOp", "AssignSubVariableOp", "ResourceScatterAdd", "ResourceScatterSub")
_ASSIGN_ADD += ("ResourceScatterNdAdd", "ResourceScatterNdSub")


def added_variables(graph, variables):
    """Returns the part of `variables`, a list of `tf.Variable`s, to which a function adds something of its inputs.

    The added value depends on the inputs, but not on the variable itself. The result has neither a variable that counts
    calls nor a moving average.

    Args:
      graph: the graph of a concrete function.
    """
    definition = graph.as_graph_def()
    functions = {function.signature.name: function for function in definition.library.function}
    handles = {id(variable.handle): i for i, variable in enumerate(variables)}
    names = {inner.op.name: handles.get(id(outer), inner.op.name) for outer, inner in graph.captures}
    inputs = {x.op.name: "input" for x in graph.inputs if x.op.name not in names}
    found = set(_added(definition.node, names | inputs, functions))
    return [variable for i, variable in enumerate(variables) if i in found]


def _added(nodes, arguments, functions):
    """Yields what stands for the variables in `arguments`, a dict from names of inputs."""
    nodes = {node.name: node for node in nodes if node.name not in arguments}

    def inputs_of(node):
        return [re.split("[:^]", text)[0] for text in node.input if not text.startswith("^")]

    def behind(names):
        """Returns the names of all that some nodes depend on, and the variables that they read."""
        waiting, seen = list(names), set()
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                waiting += inputs_of(nodes[name]) if name in nodes else []
        return {arguments.get(name, name) for name in seen}

    def variable_of(name):
        while name in nodes and nodes[name].op in (*_PASS, "ReadVariableOp"):
            name = inputs_of(nodes[name])[0]
        return arguments.get(name)

    for node in nodes.values():
        ends = inputs_of(node)
        called = [node.attr[key].func.name for key in node.attr if node.attr[key].HasField("func")]
        for function in (functions[name] for name in called if name in functions):
            names = [argument.name for argument in function.signature.input_arg]
            given = ["input" if "input" in behind([end]) else variable_of(end) for end in ends[-len(names) :]]
            yield from _added(function.node_def, dict(zip(names, given, strict=True)), functions)
        if node.op in _ASSIGN_ADD:
            variable, parts = variable_of(ends[0]), ends[1:]
        elif node.op == "AssignVariableOp":
            variable, value = variable_of(ends[0]), ends[1]
            while value in nodes and nodes[value].op in _PASS:
                value = inputs_of(nodes[value])[0]
            terms = inputs_of(nodes[value]) if value in nodes and nodes[value].op in _ADD else []
            parts = [term for term in terms if variable_of(term) != variable]
            parts = parts if len(parts) < len(terms) else []
        else:
            continue
        if isinstance(variable, int) and any(
            "input" in (found := behind([part])) and variable not in found for part in parts
        ):
            yield variable
