"""Names of a file's tensors, cut short where bytes count, and found again in the float file.

TensorFlow's converter gives a fused operator the names of all that it was made of, joined by ";".
They take a twentieth of a small network's file at 4 bits.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence

from dgh_tf.models.tflite.model import TFLiteModel, read_model
from dgh_tf.models.tflite.parts import pack_small, unpack


def unless_taken(names: Sequence[str], shorter: Sequence[str]) -> list[str]:
    """`shorter` in place of each name, where no other tensor has or would have it; else the name
    as it was.
    """
    taken = collections.Counter([*names, *shorter])
    return [
        short if taken[short] == 1 else name for name, short in zip(names, shorter, strict=True)
    ]


def with_short_names(tflite: bytes | TFLiteModel) -> TFLiteModel:
    """The file with one name for each tensor instead of several: the first one, which is the
    operator whose output it is, and of constants the last one, which is their own. Inputs and
    outputs keep theirs.
    """
    model = read_model(tflite)
    parts = unpack(model)
    for graph, read in zip(parts.subgraphs, model.subgraphs, strict=True):
        ends, names = {*read.inputs, *read.outputs}, [tensor.name for tensor in read.tensors]
        shorter = [
            name if i in ends else name.split(";")[-1 if tensor.constant else 0]
            for i, (name, tensor) in enumerate(zip(names, read.tensors, strict=True))
        ]
        for part, name in zip(graph.tensors, unless_taken(names, shorter), strict=True):
            part.name = name.encode()
    return pack_small(parts)


def names_in(made: TFLiteModel, reference: TFLiteModel) -> dict[str, str]:
    """What the outputs of the float file's operators are called in the integer file `made`, short
    or not. Those that it does not have are left out.
    """
    present = {t.name for o in made.operators for t in o.output_tensors}
    names = [t.name for o in reference.operators for t in o.output_tensors]
    shorter = unless_taken(names, [name.split(";")[0] for name in names])
    both = zip(names, shorter, strict=True)
    found = {name: name if name in present else short for name, short in both}
    return {name: other for name, other in found.items() if other in present}
