"""One door to every way of turning calibration images into an integer model, by name.

docs/guide/algorithms.md says what each does and where it comes from. All take the same images, so
they compare.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from dgh_tf.common.quiet import held_stderr
from dgh_tf.models.tflite.model import read_model
from dgh_tf.models.tflite_model import float_file
from tflite_export.algorithms.bit_allocation import Limit, quantize_mixed
from tflite_export.algorithms.by_name import (
    ALGORITHMS,
    OWN_OPTIONS,
    PLAIN,
    check_algorithm,
    check_options,
    float_start,
)
from tflite_export.algorithms.outside_converter import OutsideError, what_failed
from tflite_export.calibration.check import Images, check_calibration
from tflite_export.calibration.collect import as_images
from tflite_export.calibration.hold_out import hold_back
from tflite_export.conversion.freeze import collected, input_shapes, plain
from tflite_export.tflite.edit import without_softmax
from tflite_export.tflite.integer_check import check_integer
from tflite_export.tflite.schemes import SCHEMES

# share of minmax's noise that another algorithm must remove before it is the best: on generated
# images bias correction shows gains that real images do not have (docs/experiments/algorithms.md)
_LEAST_GAIN = {"bias_correction": 0.5, "reconstruction": 0.05}
_FALLBACK = "Algorithm {algorithm} does not take this model ({why}), so minmax was used{how}."


class Quantized(NamedTuple):
    """The file's bytes, and what is worth keeping beside them (JSON types): algorithm, seed,
    images, seconds, ...
    """

    tflite: bytes
    notes: dict[str, Any]


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


def _count(arrays: Mapping[str, np.ndarray]) -> int:
    return len(next(iter(arrays.values())))


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
    from tflite_export.quality.candidates import compare

    long = chosen == "reconstruction"
    rest, held = hold_back(arrays, smallest=64 if long else 16)
    apart = _count(arrays) - _count(rest)
    own = OWN_OPTIONS.get(chosen, ())
    plainly = {name: value for name, value in options.items() if name not in own}
    if not isinstance(model, bytes):
        plainly["float_tflite"] = float_tflite  # the converter may have to start from the model
    starts = {chosen: _Start(float_tflite, options), PLAIN: _Start(model, plainly)}
    files, notes, errors = _tried(starts, rest)
    if chosen in errors:
        error, how = errors[chosen], ""
        why = what_failed(error)
        if isinstance(error, OutsideError):
            if isinstance(model, bytes):  # the converter cannot start from it
                raise error
            how, plainly = ", with the converter's own ranges", {**plainly, "outside": why}
        tflite, _ = _made(PLAIN, _Start(model, plainly), arrays)
        return PLAIN, tflite, {"fallback": _FALLBACK.format(algorithm=chosen, why=why, how=how)}
    in_turn = {name: files[name] for name in (PLAIN, chosen) if name in files}
    with held_stderr():  # LiteRT announces its delegate
        figures = compare(float_tflite, in_turn, held)
    plain = PLAIN in figures and not figures[chosen].surely_better_than(
        figures[PLAIN], by=_LEAST_GAIN[chosen]
    )
    best = PLAIN if plain else chosen
    told: dict[str, Any] = {name: each.as_json() for name, each in figures.items()}
    told |= {name: {"error": what_failed(error)} for name, error in errors.items()}
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
    if algorithm == "best" and chosen != PLAIN:
        start = float_start(model if file else float_tflite or model, arrays, timeout)
        return _best(chosen, model, arrays, float_tflite=start, options=options)
    start_at = model
    if float_tflite is not None and chosen not in (PLAIN, "distillation") and not file:
        start_at = float_tflite
    if chosen == PLAIN and not file:
        options["float_tflite"] = float_tflite  # the converter may have to start from the model
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
    generated: bool = True,
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
      algorithm: one of algorithms.by_name.NAMES.
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
      generated: whether the images are, as they well may be. Scheme "mixed" predicts the agreement
        from them, and a model is surer of generated images than of real ones.
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
    check_options(options, algorithm=chosen)
    model = float_file(model) or model
    arrays = _arrays(model, images)
    if isinstance(model, bytes):
        _require_file_start(chosen, scheme)
    if chosen == "distillation":  # which starts from Keras' layers, and cuts the head itself
        options["head"] = head
    elif head == "logits" or scheme == "mixed":
        model = float_start(float_tflite or model, arrays, timeout)
        if head == "logits":
            model = without_softmax(model).data
    options |= {"scheme": scheme, "seed": seed, "say": say, "timeout": timeout}
    make = functools.partial(
        _chosen, algorithm, chosen, model, arrays, float_tflite=float_tflite, options=options
    )
    if scheme == "mixed":
        used, tflite, notes = quantize_mixed(
            model,
            arrays,
            limit,
            rule="mse" if chosen in ("mse", "reconstruction") else "minmax",  # the algorithm's
            generated=generated,
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
