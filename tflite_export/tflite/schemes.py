"""The integer schemes a file can have: one table, one name for each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scheme:
    """How many bits a file computes with.

    Attributes:
      name: what --scheme takes and F.json holds.
      weight_bits: of convolutions, depthwise and dense layers. Of mixed: the fewest; each layer has
        4 or 8, which `bit_allocation` chooses.
      activation_bits: of every tensor between operators.
      io_dtype: dtype of the file's inputs and outputs.
      converter_operators: the operator set's name in tf.lite.OpsSet. TensorFlow has none for 4-bit
        weights: such a file is converted with 8, then its weights are rewritten.
    """

    name: str
    weight_bits: int
    activation_bits: int
    io_dtype: str
    converter_operators: str


SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme("int8", 8, 8, "int8", "TFLITE_BUILTINS_INT8"),
        Scheme(
            "int16x8",
            8,
            16,
            "int16",
            "EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8",
        ),
        Scheme("w4a8", 4, 8, "int8", "TFLITE_BUILTINS_INT8"),
        Scheme("mixed", 4, 8, "int8", "TFLITE_BUILTINS_INT8"),
    )
}


def find_scheme(name: str) -> Scheme:
    """The scheme of this name. Raises ValueError, naming the schemes there are, for any other.

    Example: find_scheme("w4a8").weight_bits == 4
    """
    if name not in SCHEMES:
        raise ValueError(f"Unknown scheme '{name}'; expected one of {', '.join(SCHEMES)}.")
    return SCHEMES[name]
