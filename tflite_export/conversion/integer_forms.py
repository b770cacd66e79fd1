"""Functions that have no integer kernel, or one that loses the values, written in operations that
keep them.
"""

from __future__ import annotations

from typing import Any

from tflite_export.conversion.affine import fold_affine
from tflite_export.conversion.graph_edit import GraphEdit

# Klambauer et al. 2017
_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


def with_integer_forms(frozen: Any, *, activation_bits: int = 8) -> Any:
    """The frozen function with every such part written in another way, value for value but for
    rounding.

    -x becomes x * -1; layer normalization is full of it. The square of x, as group normalization
    takes it, becomes x * x. Keras' GELU is written with erfc, which TFLite does not know; with erf
    the converter finds its GELU operator. Softplus and SELU become sums of bounded parts: the
    exponential that the converter writes them with has a range of which 8 bits show nothing but
    the top. The lower or higher of x and a constant is left only where nothing else takes x, since
    the converter gives x the bounded range. BatchNorm layers behind an activation go into the
    layers around them (`fold_affine`).

    activation_bits: of the file to be made; LiteRT has no squared difference of 16 bits.
    """
    graph = GraphEdit(frozen)
    changes = (
        (graph.nodes("Softplus"), _write_softplus),
        (graph.nodes("Selu"), _write_selu),
        (_clipping(graph), _write_clip),
        (_squares(graph, activation_bits), _write_with_product),
        (graph.nodes("Erfc"), _write_with_erf),
        (graph.nodes("Neg"), _write_negation),
    )
    changed = fold_affine(graph)
    for nodes, write in changes:
        for node in nodes:
            write(graph, node)
            changed = True
    return graph.function() if changed else frozen


def _squares(graph: GraphEdit, activation_bits: int) -> list[Any]:
    """Squares, and squared differences of more axes or bits than that of TFLite takes: of more axes
    the converter writes them with SQUARE.
    """
    differences = graph.nodes("SquaredDifference")
    if activation_bits > 8:
        return [*graph.nodes("Square"), *differences]
    many = [node for node in differences if len(graph.shape(node) or range(5)) > 4]
    return [*graph.nodes("Square"), *many]


def _clipping(graph: GraphEdit) -> list[Any]:
    """Minima and maxima of a tensor that others take, too, and a constant. Not ReLU."""
    found = []
    for node in graph.nodes("Minimum", "Maximum"):
        fixed = [graph.is_constant(name) for name in node.input]
        if sum(fixed) != 1:
            continue
        source, bound = node.input[fixed.index(False)], node.input[fixed.index(True)]
        is_relu = node.op == "Maximum" and not graph.value(bound).any()
        shared = len(graph.readers(graph.maker(source))) > 1
        if shared and not is_relu and not source.partition(":")[2].strip("0"):
            found.append(node)
    return found


def _write_clip(graph: GraphEdit, node: Any) -> None:
    """min(x, c) becomes x - relu(x - c), max(x, c) becomes x + relu(c - x).

    What is beyond a far c is 0, whatever the scale of the difference; c - relu(c - x) would leave
    x with that scale. But min(x, 0) becomes 0 - relu(0 - x), whose zeros are exact.
    """
    source, bound = node.input
    if graph.is_constant(source):
        source, bound = bound, source
    if node.op == "Minimum" and not graph.value(bound).any():
        start, ends = bound, (bound, source)
    else:
        start, ends = source, (source, bound) if node.op == "Minimum" else (bound, source)
    excess = graph.add("Sub", f"{node.name}/excess", *ends)
    beyond = graph.add("Relu", f"{node.name}/beyond", excess)
    graph.write(node, "Sub" if node.op == "Minimum" else "AddV2", start, beyond)


def _write_softplus(graph: GraphEdit, node: Any) -> None:
    """log(1 + exp(x)) becomes relu(x) - log(sigmoid(|x|))."""
    x, name = node.input[0], node.name
    size = graph.add("Abs", f"{name}/size", x)
    share = graph.add("Sigmoid", f"{name}/share", size)
    rest = graph.add("Log", f"{name}/rest", share)
    graph.write(node, "Sub", graph.add("Relu", f"{name}/positive", x), rest)


def _write_selu(graph: GraphEdit, node: Any) -> None:
    """SELU becomes scale * relu(x) - scale * alpha * relu(-elu(x))."""
    x, name = node.input[0], node.name
    minus_one = graph.constant(f"{name}/minus_one", -1.0)
    above = graph.constant(f"{name}/above", _SELU_SCALE)
    below = graph.constant(f"{name}/below", -_SELU_SCALE * _SELU_ALPHA)
    turned = graph.add("Mul", f"{name}/turned", graph.add("Elu", f"{name}/elu", x), minus_one)
    negative = graph.add("Mul", f"{name}/negative", graph.add("Relu", f"{name}/low", turned), below)
    positive = graph.add("Mul", f"{name}/positive", graph.add("Relu", f"{name}/high", x), above)
    graph.write(node, "AddV2", positive, negative)


def _write_negation(graph: GraphEdit, node: Any) -> None:
    minus_one = graph.constant(f"{node.name}/minus_one", -1.0)
    graph.write(node, "Mul", node.input[0], minus_one)


def _write_with_product(graph: GraphEdit, node: Any) -> None:
    """x^2 becomes x * x, (a - b)^2 likewise."""
    x = node.input[0]
    if node.op == "SquaredDifference":
        x = graph.add("Sub", f"{node.name}/difference", *node.input)
    graph.write(node, "Mul", x, x)


def _write_with_erf(graph: GraphEdit, node: Any) -> None:
    """erfc(-x * c) of a GELU becomes 1 + erf(x * c); other erfc stay, for the converter to name."""
    product = graph.maker(node.input[0])
    if product.op != "Mul" or graph.maker(product.input[0]).op != "Neg":
        return
    source = graph.maker(product.input[0]).input[0]
    positive = graph.add("Mul", f"{node.name}/positive", source, product.input[1])
    erf = graph.add("Erf", f"{node.name}/erf", positive)
    graph.write(node, "AddV2", erf, graph.constant(f"{node.name}/one", 1.0))
