"""The graph of the step for TensorBoard's Graphs tab."""

import collections
import re


def readable_graph(graph):
    """Renames the operations of a graph, so that TensorBoard groups them by the name scopes of the step.

    Args:
      graph: `tf.Graph`. It is not changed.

    Returns: a `GraphDef` in which every operation except the inputs has a scope.
    """
    definition = graph.as_graph_def()
    scopes = {scope for node in definition.node for scope in node.name.split("/")[:-1]}
    # Keras opens the scope of a layer twice, so that cnn_1 belongs to cnn, unless a cnn_3 shows that there are two.
    bases = collections.Counter(re.sub(r"_\d+$", "", scope) for scope in scopes)

    def rename(name):
        parts = re.sub("^gradient_tape/(loss/)?", "gradients/", name).split("/")
        for i, part in enumerate(parts[:-1]):
            base = re.sub(r"_\d+$", "", part)
            parts[i] = base if bases[base] == 1 else part
        return "/".join(parts if len(parts) > 1 or parts[0] in ("images", "labels") else ["outputs", *parts])

    for node in definition.node:
        node.name = rename(node.name)
        for i, source in enumerate(node.input):
            control, name, output = re.fullmatch(r"(\^?)([^:]*)(.*)", source).groups()
            node.input[i] = f"{control}{rename(name)}{output}"
    return definition
