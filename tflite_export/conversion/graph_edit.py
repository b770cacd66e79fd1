"""A frozen TensorFlow graph with some of its nodes written in other operations."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np


class _Index:
    """What is where in a GraphDef.

    Attributes:
      nodes: by name.
      readers: nodes by the name of one that they take, once for each time.
      constants: names of nodes that depend on no input.
    """

    def __init__(self, definition: Any) -> None:
        self.nodes = {node.name: node for node in definition.node}
        self.readers: dict[str, list[Any]] = {}
        self.constants: set[str] = set()
        for node in definition.node:
            for name in _given(node):
                self.readers.setdefault(name, []).append(node)
        found = [node for node in definition.node if node.op == "Const"]
        while found:
            node = found.pop()
            self.constants.add(node.name)
            found += [
                reader
                for reader in self.readers.get(node.name, [])
                if reader.name not in self.constants
                and all(name in self.constants for name in _given(reader))
            ]


class GraphEdit:
    """The GraphDef of a frozen function, to be changed in place.

    Attributes:
      definition: the GraphDef.
    """

    def __init__(self, frozen: Any) -> None:
        self._frozen = frozen
        self.definition = frozen.graph.as_graph_def()
        self._inputs = [tensor.name for tensor in frozen.inputs]
        self._outputs = [tensor.name for tensor in frozen.outputs]
        self._before: dict[str, str] = {}  # of nodes that `behind` renamed: the names they had
        self._added: set[str] = set()
        self._index: _Index | None = None

    @property
    def _now(self) -> _Index:
        if self._index is None:
            self._index = _Index(self.definition)
        return self._index

    def nodes(self, *ops: str) -> list[Any]:
        """Those of float32 with one of these operations."""
        return [n for n in self.definition.node if n.op in ops and _is_float32(n)]

    def maker(self, name: str) -> Any:
        """The node whose first output has this name."""
        return self._now.nodes[_plain(name)]

    def readers(self, node: Any) -> list[Any]:
        """Nodes that take it, one that takes it twice twice; None stands for the function's end."""
        ends = [None] if f"{node.name}:0" in self._outputs else []
        return [*self._now.readers.get(node.name, []), *ends]

    def shape(self, node: Any) -> list[int | None] | None:
        """Of what a node of the frozen function gives; None where it is not known, and of an added
        node.
        """
        name = self._before.get(node.name, node.name)
        if name in self._added:
            return None
        shape = self._frozen.graph.get_tensor_by_name(f"{name}:0").shape
        return None if shape.rank is None else list(shape)

    @staticmethod
    def attribute(node: Any, name: str) -> Any:
        """The AttrValue; an empty one where the node has none. Reading a map of protocol buffers
        would leave one in it.
        """
        import tensorflow as tf

        return node.attr[name] if name in node.attr else tf.compat.v1.AttrValue()

    def is_constant(self, name: str) -> bool:
        return _plain(name) in self._now.constants

    def value(self, name: str) -> np.ndarray:
        """Of a node that is constant."""
        import tensorflow as tf

        node = self.maker(name)
        while node.op == "Identity":
            node = self.maker(node.input[0])
        if node.op == "Const":
            return tf.make_ndarray(node.attr["value"].tensor)
        return self._computed[node.name]

    @functools.cached_property
    def _computed(self) -> dict[str, np.ndarray]:
        """Values of the frozen function's nodes that are constant and no constant's node, where
        others take them.
        """
        index = _Index(self._frozen.graph.as_graph_def())
        names = [
            name
            for name in sorted(index.constants)
            if index.nodes[name].op not in ("Const", "Identity")
            and any(
                reader.op == "Identity" or reader.name not in index.constants
                for reader in index.readers.get(name, [])
            )
        ]
        values = self._frozen.prune([], [f"{name}:0" for name in names])()
        return {name: value.numpy() for name, value in zip(names, values, strict=True)}

    def constant(self, name: str, value: Any, *, dtype: Any = np.float32) -> str:
        """Adds a constant; returns its name."""
        import tensorflow as tf

        self._index = None
        made = tf.make_tensor_proto(np.asarray(value, dtype))
        node = self.definition.node.add(name=name, op="Const")
        node.attr["dtype"].type = made.dtype
        node.attr["value"].tensor.CopyFrom(made)
        return name

    def add(self, op: str, name: str, *inputs: str, **attributes: Any) -> str:
        """Adds a float32 node; returns its name. attributes: AttrValues by name."""
        self._added.add(name)
        node = self.definition.node.add(name=name)
        self.write(node, op, *inputs, **attributes)
        return name

    def write(self, node: Any, op: str, *inputs: str, **attributes: Any) -> None:
        """Gives a node another operation, under its name."""
        import tensorflow as tf

        self._index = None
        node.op = op
        del node.input[:]
        node.input.extend(inputs)
        node.attr.clear()
        node.attr["T"].type = tf.float32.as_datatype_enum
        for key, value in attributes.items():
            node.attr[key].CopyFrom(value)

    def behind(self, node: Any, op: str, *others: str) -> None:
        """Puts an operation of a node and `others` behind the node; whatever took the node takes
        what that gives.
        """
        before = self.definition.node.add()
        before.CopyFrom(node)
        before.name = f"{node.name}/before"
        self._before[before.name] = self._before.get(node.name, node.name)
        self.write(node, op, before.name, *others)

    @staticmethod
    def integers(*values: int) -> Any:
        """A list of integers as an attribute."""
        import tensorflow as tf

        return tf.compat.v1.AttrValue(list=tf.compat.v1.AttrValue.ListValue(i=values))

    @staticmethod
    def text(value: str) -> Any:
        """A text as an attribute."""
        import tensorflow as tf

        return tf.compat.v1.AttrValue(s=value.encode())

    @staticmethod
    def type_of(dtype: Any) -> Any:
        """A dtype as an attribute."""
        import tensorflow as tf

        return tf.compat.v1.AttrValue(type=tf.as_dtype(dtype).as_datatype_enum)

    def function(self) -> Any:
        """The function of the changed graph."""
        import tensorflow as tf

        graph = self.definition
        return tf.compat.v1.wrap_function(lambda: tf.import_graph_def(graph, name=""), []).prune(
            self._inputs, self._outputs
        )


def _given(node: Any) -> list[str]:
    """Names of the nodes that it takes values of."""
    return [_plain(name) for name in node.input if not name.startswith("^")]


def _plain(name: str) -> str:
    """A node's name from that of its first output."""
    return name.removesuffix(":0")


def _is_float32(node: Any) -> bool:
    import tensorflow as tf

    return "T" in node.attr and node.attr["T"].type == tf.float32.as_datatype_enum
