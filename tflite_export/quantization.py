"""One door to every way of turning calibration images into an integer model, by name.

docs/guide/algorithms.md says what each does and where it comes from. All take the same images, so
they compare.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from dgh_tf.common.quiet import held_stderr
from dgh_tf.common.text import in_one_line
from dgh_tf.models.tflite.model import read_model
from dgh_tf.models.tflite_model import float_file
from tflite_export.algorithms.bit_allocation import Limit, quantize_mixed
from tflite_export.calibration.check import Images, check_calibration, few_images
from tflite_export.calibration.collect import as_images
from tflite_export.conversion.converter import (
    convert_checked,
    to_float_tflite,
    to_tflite_with_ranges,
)
from tflite_export.conversion.freeze import collected, input_shapes, plain
from tflite_export.simulation.fake_quant import WeightBits
from tflite_export.tflite.edit import with_own_biases
from tflite_export.tflite.integer_check import check_integer
from tflite_export.tflite.schemes import SCHEMES, find_scheme

# share of minmax's noise that another algorithm must remove before it is the best: on generated
# images bias correction shows gains that real images do not have (docs/experiments/algorithms.md)
_LEAST_GAIN = {"bias_correction": 0.5, "reconstruction": 0.05}
_STEPS = 300  # of reconstruction, per block: more gains little (docs/experiments/algorithms.md)
# what measured best of the algorithms that need nothing installed (docs/experiments/algorithms.md)
_BEST = {
    "int8": "bias_correction",
    "int16x8": "minmax",
    "w4a8": "reconstruction",
    "mixed": "reconstruction",
}
_PLAIN = "minmax"  # what "best" never falls behind: the converter's own ranges and roundings
HEADS = ("model", "logits")
_FALLBACK = "Algorithm {algorithm} does not take this model ({why}), so minmax was used."
_EIGHT_BIT_ACTIVATIONS = ("int8", "w4a8", "mixed")


class Quantized(NamedTuple):
    """The file's bytes, and what is worth keeping beside them (JSON types): algorithm, seed,
    images, seconds, ...
    """

    tflite: bytes
    notes: dict[str, Any]


class Algorithm(NamedTuple):
    """`function(model, images, *, scheme, seed, say, timeout)` gives the bytes, or (bytes, notes);
    the schemes it has.
    """

    function: Callable[..., Any]
    schemes: tuple[str, ...]


def _arrays(model: Any, images: Images) -> dict[str, np.ndarray]:
    """The images by input name, checked. A float .tflite file is asked for its inputs as a model
    is.
    """
    if not isinstance(model, bytes):
        images = collected(model, images)
        return check_calibration(images, input_shapes=input_shapes(model, images))
    file = read_model(model)
    shapes = {
        name: file.tensors[i].shape[1:]
        for name, i in zip(file.input_names, file.inputs, strict=True)
    }
    return check_calibration(as_images(images, shapes=shapes, name=plain), input_shapes=shapes)


def _float(model: Any, images: Mapping[str, np.ndarray], timeout: float | None) -> bytes:
    """The float file that algorithms start from: each operator has a bias of its own."""
    if isinstance(model, bytes):
        return with_own_biases(model).data
    return to_float_tflite(model, images=images, timeout=timeout)


def _minmax(
    model: Any,
    arrays: Mapping[str, np.ndarray],
    *,
    scheme: str,
    seed: int,
    say: Any,
    timeout: float | None,
    float_tflite: bytes | None = None,
    weight_bits: WeightBits | None = None,
) -> bytes:
    if isinstance(model, bytes):
        return _ranges(
            model,
            arrays,
            scheme=scheme,
            seed=seed,
            say=say,
            timeout=timeout,
            rule="minmax",
            weight_bits=weight_bits,
        )
    return convert_checked(model, arrays, scheme=scheme, timeout=timeout, float_tflite=float_tflite)


def _ranges(
    model: Any,
    arrays: Mapping[str, np.ndarray],
    *,
    scheme: str,
    seed: int,
    say: Any,
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
    tflite = _float(model, arrays, timeout)
    graph = proven(read_graph(tflite), arrays)
    constants = equalize(graph, images=few_images(arrays)) if equalized else {}
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
    """Ranges of least squared error, then `reconstruction.reconstruct`."""
    from dgh_tf.models.tflite.run import read_graph
    from tflite_export.algorithms.block_reconstruction import learn_rounding

    bits = SCHEMES[scheme].weight_bits if weight_bits is None else weight_bits
    tflite = _float(model, arrays, timeout)
    ranges, found = learn_rounding(
        read_graph(tflite), arrays, weight_bits=bits, steps=steps, seed=seed, say=say
    )
    made = to_tflite_with_ranges(
        tflite,
        ranges=ranges,
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
    say: Any,
    timeout: float | None,
) -> tuple[bytes, dict[str, Any]]:
    from tflite_export.algorithms.ai_edge import quantize_with_ai_edge

    made, tool = quantize_with_ai_edge(_float(model, arrays, timeout), arrays, scheme=scheme)
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
_OWN = {
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


def _check_options(options: Iterable[str], *, algorithm: str) -> None:
    """Raises ValueError for an option that the algorithm does not have."""
    known = _OWN.get(algorithm, ())
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ValueError(
            f"Algorithm {algorithm} has no option {', '.join(unknown)}; it takes "
            f"{', '.join(known) or 'none of its own'}. Settings of generated images go to "
            "config=dgh_tf.GenerationConfig(...)."
        )


def _count(arrays: Mapping[str, np.ndarray]) -> int:
    return len(next(iter(arrays.values())))


def _why(error: Exception) -> str:
    """An error in one short line; TensorFlow's own texts speak of its internals."""
    import tensorflow as tf

    if isinstance(error, tf.errors.OpError):
        return "TensorFlow cannot run a part of it outside the converter"
    if not isinstance(error, ValueError):
        return f"it ends in {type(error).__name__}"
    return in_one_line(error, most=300)


class _Start(NamedTuple):
    """What one algorithm is tried with: a model or a float file, and options."""

    model: Any
    options: dict[str, Any]


def _best(
    chosen: str,
    model: Any,
    arrays: dict[str, np.ndarray],
    *,
    float_tflite: bytes,
    options: dict[str, Any],
) -> tuple[str, bytes, dict[str, Any]]:
    """(algorithm, file, notes): `chosen` if its file surely keeps more of the float model than
    minmax's on images that neither saw, else minmax. Raises minmax's error where none gives a file.

    The file is then made anew by that algorithm with all images: both trial files lacked the same
    ones, so the choice stands, and small sets can spare none. Only learned roundings take minutes:
    there the file that was measured is given, and small sets are compared on themselves.
    """
    from tflite_export.quality.candidates import compare, hold_back

    long = chosen == "reconstruction"
    rest, held = hold_back(arrays, smallest=64 if long else 16)
    apart = _count(arrays) - _count(rest)
    plainly = {name: value for name, value in options.items() if name not in _OWN.get(chosen, ())}
    if not isinstance(model, bytes):
        plainly["float_tflite"] = float_tflite  # the converter starts from the model itself
    starts = {chosen: _Start(float_tflite, options), _PLAIN: _Start(model, plainly)}
    files, notes, errors = _tried(starts, rest)
    if chosen in errors:
        why = _why(errors[chosen])
        tflite, _ = _made(_PLAIN, starts[_PLAIN], arrays)
        return _PLAIN, tflite, {"fallback": _FALLBACK.format(algorithm=chosen, why=why)}
    in_turn = {name: files[name] for name in (_PLAIN, chosen) if name in files}
    with held_stderr():  # LiteRT announces its delegate
        figures = compare(float_tflite, in_turn, held)
    plain = _PLAIN in figures and not figures[chosen].surely_better_than(
        figures[_PLAIN], by=_LEAST_GAIN[chosen]
    )
    best = _PLAIN if plain else chosen
    told: dict[str, Any] = {name: each.as_json() for name, each in figures.items()}
    told |= {name: {"error": _why(error)} for name, error in errors.items()}
    found = {**notes[best], "candidates": told, "held_back": apart}
    if options["say"] and len(figures) > 1:
        shown = ", ".join(f"{name} {each.mean_db:.1f} dB" for name, each in figures.items())
        on = f"{apart} images held back" if apart else "the calibration images (a small set)"
        options["say"](f"best is {best}: on {on}, {shown} over quantization noise")
    if apart and best != "reconstruction":
        files[best], _ = _made(best, starts[best], arrays)
    return best, files[best], found


def _tried(
    starts: Mapping[str, _Start], images: dict[str, np.ndarray]
) -> tuple[dict[str, bytes], dict[str, dict[str, Any]], dict[str, Exception]]:
    """(files, notes, errors) by algorithm, each from its own start: a model or a float file. After
    an error no other is tried.
    """
    files: dict[str, bytes] = {}
    notes: dict[str, dict[str, Any]] = {}
    for name, start in starts.items():
        try:
            files[name], notes[name] = _made(name, start, images)
        except Exception as error:  # whatever goes wrong in a graph run outside the converter
            return files, notes, {name: error}
    return files, notes, {}


def _made(name: str, start: _Start, images: dict[str, np.ndarray]) -> tuple[bytes, dict[str, Any]]:
    """The file of one algorithm, proven integer, and its notes."""
    result = ALGORITHMS[name].function(start.model, images, **start.options)
    tflite, notes = result if isinstance(result, tuple) else (result, {})
    check_integer(tflite, io_dtype=SCHEMES[start.options["scheme"]].io_dtype)
    return tflite, notes


def _require_file_start(chosen: str, scheme: str) -> None:
    """Raises ValueError for what cannot start from a float .tflite file."""
    if chosen != "ai_edge" and (scheme == "int16x8" or chosen == "distillation"):
        raise ValueError(
            f"Scheme {scheme} by algorithm {chosen} starts from a Keras model; got a .tflite file. "
            "Pass the Keras model, or use scheme int8 or w4a8 and another algorithm."
        )


def _chosen(
    algorithm: str,
    chosen: str,
    model: Any,
    arrays: dict[str, np.ndarray],
    *,
    float_tflite: bytes | None,
    options: dict[str, Any],
    **bits: Any,
) -> tuple[str, bytes, dict[str, Any]]:
    """(algorithm, file, notes) by the algorithm asked for. bits: `weight_bits`, where the scheme
    leaves them open.
    """
    options = {**options, **bits}
    file, timeout = isinstance(model, bytes), options["timeout"]
    if algorithm == "best" and chosen != _PLAIN:
        start = _float(model if file else float_tflite or model, arrays, timeout)
        return _best(chosen, model, arrays, float_tflite=start, options=options)
    start_at = model
    if float_tflite is not None and chosen not in (_PLAIN, "distillation") and not file:
        start_at = float_tflite
    if chosen == _PLAIN and not file:
        options["float_tflite"] = float_tflite  # the converter starts from the model itself
    result = ALGORITHMS[chosen].function(start_at, arrays, **options)
    return chosen, *(result if isinstance(result, tuple) else (result, {}))


def check_limit(limit: Limit, *, scheme: str) -> None:
    """Raises ValueError for a limit beside a scheme that chooses nothing by it."""
    if scheme != "mixed" and limit != Limit():
        name = "max_kib" if limit.max_kib is not None else "min_agreement"
        raise ValueError(
            f"{name} is for scheme mixed, which chooses the bits of each layer; got scheme "
            f"{scheme}. Use scheme mixed, or leave {name} out."
        )


def quantize(
    model: Any,
    images: Images,
    *,
    scheme: str = "int8",
    algorithm: str = "best",
    head: str = "model",
    seed: int = 0,
    say: Callable[[str], None] | None = None,
    timeout: float | None = None,
    float_tflite: bytes | None = None,
    max_kib: float | None = None,
    min_agreement: float | None = None,
    **options: Any,
) -> Quantized:
    """Makes a full-integer .tflite file from a float model and calibration images.

    Args:
      model: Keras 3 or tf_keras model, the bytes of a float .tflite file of `to_float_tflite`, or
        what `load_model` made of a float .tflite file: then the file itself is quantized.
      images: float32 [number, ...input shape] in the model's input units, or a dict by input name.
        A list of images, a tf.data.Dataset, a generator or a representative_dataset function will
        do as well.
      scheme: one of SCHEMES.
      algorithm: one of NAMES.
      head: "logits" leaves out softmax and sigmoid at the end, so the output is what they took,
        with a scale of its own.
      seed: of what the algorithm draws at random.
      say: takes lines of progress.
      timeout: seconds of each conversion.
      float_tflite: the Keras model's file of `to_float_tflite`, where it is made already, so that
        it is not made again.
      max_kib: of scheme "mixed": the most KiB (1024 bytes) the file may take, or None.
      min_agreement: of scheme "mixed", instead of max_kib: the agreement with the float model,
        0..1, that the file should keep; see `bit_allocation.Limit`.
      **options: of one algorithm alone, such as `steps`.
    Raises:
      ValueError: unknown or unfit names, bad images, or a model with operators that the algorithm
        cannot run. "best" then falls back to minmax and says why under "fallback" in the notes.
      ConversionError: the converter failed.
      IntegerError: something stayed float.
    """
    chosen, start = check_algorithm(algorithm, scheme=scheme, head=head), time.perf_counter()
    limit = Limit(max_kib=max_kib, min_agreement=min_agreement)
    check_limit(limit, scheme=scheme)
    _check_options(options, algorithm=chosen)
    given, model = model, float_file(model) or model
    arrays = _arrays(model, images)
    if isinstance(model, bytes):
        _require_file_start(chosen, scheme)
    if chosen == "distillation":
        options["head"] = head
    elif head == "logits":
        from tflite_export.tflite.edit import without_softmax

        model = without_softmax(_float(float_tflite or model, arrays, timeout)).data
    elif scheme == "mixed":
        model = _float(float_tflite or model, arrays, timeout)
    options |= {"scheme": scheme, "seed": seed, "say": say, "timeout": timeout}
    make = functools.partial(
        _chosen, algorithm, chosen, model, arrays, float_tflite=float_tflite, options=options
    )
    if scheme == "mixed":
        from dgh_tf.models.batchnorm import has_statistics

        used, tflite, notes = quantize_mixed(
            model,
            arrays,
            limit,
            rule="mse" if chosen in ("mse", "reconstruction") else "minmax",  # the algorithm's
            statistics=has_statistics(given),
            make=make,
            say=say,
            timeout=timeout,
        )
    else:
        used, tflite, notes = make()
    check_integer(tflite, io_dtype=SCHEMES[scheme].io_dtype)
    return Quantized(
        tflite,
        {
            "algorithm": used,
            "head": head,
            "seed": seed,
            "images": _count(arrays),
            "seconds": round(time.perf_counter() - start, 1),
            **notes,
        },
    )
