"""Every algorithm by its name, behind one signature, with the schemes and options that it has."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from tflite_export.algorithms.outside_converter import outside_converter, what_failed
from tflite_export.calibration.check import Images, few_images
from tflite_export.conversion.converter import (
    ConversionError,
    convert_checked,
    to_float_tflite,
    to_tflite_with_ranges,
)
from tflite_export.simulation.fake_quant import WeightBits
from tflite_export.tflite.edit import with_own_biases
from tflite_export.tflite.integer_check import check_integer
from tflite_export.tflite.schemes import SCHEMES, find_scheme

_STEPS = 300  # of reconstruction, per block: more gains little (docs/experiments/algorithms.md)
# what measured best of the algorithms that need nothing installed (docs/experiments/algorithms.md)
_BEST = {
    "int8": "bias_correction",
    "int16x8": "minmax",
    "w4a8": "reconstruction",
    "mixed": "reconstruction",
}
PLAIN = "minmax"  # what "best" never falls behind
_FALLBACK = "The ranges are the converter's own: the model does not run outside it ({why})."
HEADS = ("model", "logits")
_EIGHT_BIT_ACTIVATIONS = ("int8", "w4a8", "mixed")


class Algorithm(NamedTuple):
    """`function(model, images, *, scheme, seed, say, timeout)` gives the bytes, or (bytes, notes);
    the schemes it has.
    """

    function: Callable[..., Any]
    schemes: tuple[str, ...]


def float_start(model: Any, images: Mapping[str, np.ndarray], timeout: float | None) -> bytes:
    """The float file that algorithms start from: each operator has a bias of its own."""
    if isinstance(model, bytes):
        return with_own_biases(model).data
    return to_float_tflite(model, images=images, timeout=timeout)


def _minmax(
    model: Any,
    arrays: Mapping[str, np.ndarray],
    *,
    scheme: str,
    timeout: float | None,
    float_tflite: bytes | None = None,
    outside: str | None = None,
    **others: Any,
) -> bytes | tuple[bytes, dict[str, Any]]:
    """The smallest and largest value of every tensor, so that a Keras model and its float file
    give the same integers. TensorFlow's converter, which measures the branches of a sum too wide,
    is left int16x8 and the Keras models that only it can run: `outside` says why, where it is known
    that nothing else does.
    """
    options = {"scheme": scheme, "timeout": timeout, "rule": "minmax", **others}
    if isinstance(model, bytes):
        return _ranges(model, arrays, **options)
    why = outside
    if scheme != "int16x8" and why is None:
        try:
            made = _ranges(float_tflite or model, arrays, **options)
            check_integer(made, io_dtype=SCHEMES[scheme].io_dtype)
        except Exception as error:  # whatever goes wrong in a graph run outside the converter
            why = what_failed(error)
        else:
            return made
    try:
        made = convert_checked(
            model, arrays, scheme=scheme, timeout=timeout, float_tflite=float_tflite
        )
    except ConversionError as error:
        if why is None:
            raise
        raise ConversionError(f"{error}\nOutside the converter: {why}") from error
    return made if why is None else (made, {"fallback": _FALLBACK.format(why=why)})


def _ranges(
    model: Any,
    arrays: Mapping[str, np.ndarray],
    *,
    scheme: str,
    seed: int,
    say: Callable[[str], None] | None,
    timeout: float | None,
    rule: str,
    equalized: bool = False,
    corrected: bool = False,
    weight_bits: WeightBits | None = None,
) -> bytes:
    """Ranges by `rule`; weights equalized before, biases corrected after. weight_bits: by tensor
    index, where the scheme leaves them open.
    """
    from dgh_tf.models.tflite.batch import proven
    from dgh_tf.models.tflite.run import read_graph
    from tflite_export.algorithms.equalization import correct_biases, equalize
    from tflite_export.simulation.fake_quant import integer_constants, quantized_constants
    from tflite_export.simulation.ranges import collect_ranges

    bits = SCHEMES[scheme].weight_bits if weight_bits is None else weight_bits
    tflite = float_start(model, arrays, timeout)
    with outside_converter():
        graph = proven(read_graph(tflite), arrays)
    constants = equalize(graph, images=few_images(arrays)) if equalized else {}
    with outside_converter():
        ranges = collect_ranges(graph, arrays, rule=rule, constants=constants)
    weights = integer_constants(
        graph, weight_bits=bits, rule="minmax" if bits == 8 else "mse", constants=constants
    )
    if corrected:
        quantized = quantized_constants(graph, constants=constants, weights=weights)
        biases = correct_biases(
            graph, few_images(arrays), ranges=ranges, constants=quantized, float_constants=constants
        )
        constants = {**constants, **biases}
    return to_tflite_with_ranges(
        tflite,
        ranges=ranges,
        constants=constants,
        weights=None if bits == 8 else weights,
        weight_bits=bits,
        timeout=timeout,
    )


def _reconstruction(
    model: Any,
    arrays: Mapping[str, np.ndarray],
    *,
    scheme: str,
    seed: int,
    say: Callable[[str], None] | None,
    timeout: float | None,
    steps: int = _STEPS,
    weight_bits: WeightBits | None = None,
) -> tuple[bytes, dict[str, Any]]:
    """Ranges of least squared error, then `block_reconstruction.reconstruct`."""
    from tflite_export.algorithms.block_reconstruction import learn_from_file

    bits = SCHEMES[scheme].weight_bits if weight_bits is None else weight_bits
    tflite = float_start(model, arrays, timeout)
    learned = learn_from_file(tflite, arrays, weight_bits=bits, steps=steps, seed=seed, say=say)
    found = learned.found
    made = to_tflite_with_ranges(
        tflite,
        ranges=learned.ranges,
        constants=found.biases,
        weights=found.weights,
        weight_bits=bits,
        timeout=timeout,
    )
    blocks = [
        {"operators": [span.start, span.stop], "error_nearest": before, "error_learned": after}
        for span, before, after in found.errors
    ]
    return made, {"steps": steps, "blocks": blocks}


def _distillation(model: Any, images: Images, **options: Any) -> bytes:
    from tflite_export.algorithms.distillation.distill import distill

    return distill(model, images, **options)


def _ai_edge(
    model: Any,
    arrays: Mapping[str, np.ndarray],
    *,
    scheme: str,
    seed: int,
    say: Callable[[str], None] | None,
    timeout: float | None,
) -> tuple[bytes, dict[str, Any]]:
    from tflite_export.algorithms.ai_edge import quantize_with_ai_edge

    made, tool = quantize_with_ai_edge(float_start(model, arrays, timeout), arrays, scheme=scheme)
    return made, {"tool": tool}


ALGORITHMS: dict[str, Algorithm] = {
    "minmax": Algorithm(_minmax, tuple(SCHEMES)),
    "mse": Algorithm(functools.partial(_ranges, rule="mse"), _EIGHT_BIT_ACTIVATIONS),
    "percentile": Algorithm(functools.partial(_ranges, rule="percentile"), _EIGHT_BIT_ACTIVATIONS),
    "bias_correction": Algorithm(
        functools.partial(_ranges, rule="minmax", corrected=True), _EIGHT_BIT_ACTIVATIONS
    ),
    "equalization": Algorithm(
        functools.partial(_ranges, rule="minmax", equalized=True, corrected=True),
        _EIGHT_BIT_ACTIVATIONS,
    ),
    "reconstruction": Algorithm(_reconstruction, _EIGHT_BIT_ACTIVATIONS),
    "distillation": Algorithm(_distillation, ("int8", "w4a8")),
    "ai_edge": Algorithm(_ai_edge, ("int8", "int16x8")),
}
NAMES = ("best", *ALGORITHMS)
# options of one algorithm alone
OWN_OPTIONS = {
    "reconstruction": ("steps",),
    "distillation": ("steps", "batch_size", "rate", "augment"),
}


def check_algorithm(algorithm: str, *, scheme: str, head: str = "model") -> str:
    """The algorithm that will run: "best" stands for the scheme's. Raises ValueError for one that
    the scheme does not have.
    """
    find_scheme(scheme)
    if algorithm not in NAMES or head not in HEADS:
        raise ValueError(
            f"Unknown algorithm '{algorithm}' or head '{head}'; expected one of "
            f"{', '.join(NAMES)}, "
            f"and of {', '.join(HEADS)}."
        )
    chosen = _BEST[scheme] if algorithm == "best" else algorithm
    if scheme not in ALGORITHMS[chosen].schemes:
        having = ", ".join(name for name, each in ALGORITHMS.items() if scheme in each.schemes)
        raise ValueError(
            f"Algorithm {algorithm} has no scheme {scheme}. Use --algorithm={having} "
            f"or --scheme={' or '.join(ALGORITHMS[chosen].schemes)}."
        )
    if chosen == "ai_edge":
        from tflite_export.algorithms.ai_edge import installed

        installed()
    if head == "logits" and scheme == "int16x8" and chosen != "ai_edge":
        raise ValueError(
            f"A file that ends at the logits cannot be made with scheme {scheme} by "
            f"algorithm {chosen}. Use --head=model."
        )
    return chosen


def check_options(options: Iterable[str], *, algorithm: str) -> None:
    """Raises ValueError for an option that the algorithm does not have."""
    known = OWN_OPTIONS.get(algorithm, ())
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ValueError(
            f"Algorithm {algorithm} has no option {', '.join(unknown)}; it takes "
            f"{', '.join(known) or 'none of its own'}. Settings of generated images go to "
            "config=dgh_tf.GenerationConfig(...)."
        )
