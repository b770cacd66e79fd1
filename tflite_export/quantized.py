"""Quantization in one call, and what one does with its result."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

import dgh_tf
from dgh_tf.common.quiet import held_stderr
from dgh_tf.models.choices import without_choices
from dgh_tf.models.tflite_model import weight_bytes
from tflite_export.algorithms.by_name import check_algorithm, check_options
from tflite_export.calibration.check import Images
from tflite_export.calibration.load import digest
from tflite_export.calibration.units import checked_images
from tflite_export.conversion.converter import to_float_tflite
from tflite_export.conversion.freeze import collected, input_shapes
from tflite_export.images import (
    STRETCHED,
    UNSTRETCHED,
    generate,
    generate_to_judge,
)
from tflite_export.proof import output_paths, proof, proof_bytes, summary, write_set
from tflite_export.quality.held_out import Estimate, estimate
from tflite_export.quantization import Limit, check_limit
from tflite_export.quantization import quantize as quantize_with
from tflite_export.targets import report as targets
from tflite_export.targets.advice import layer_names
from tflite_export.tflite.edit import left_to_cut, without_softmax

_VERBOSE = ("auto", 0, 1, 2)


@dataclasses.dataclass(frozen=True)
class TargetReports:
    """What each target says of a file, by its name: see `targets.report.judge`."""

    reports: Mapping[str, dict[str, Any]]

    def __getitem__(self, name: str) -> dict[str, Any]:
        return self.reports[name]

    def __str__(self) -> str:
        return "\n".join(report["summary"] for report in self.reports.values())


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizedModel:
    """A full-integer .tflite file in memory, made by `quantize`.

    Attributes:
      tflite: the file's bytes. notes: how it was made (JSON types): algorithm, seed, images, ...
      float_tflite: bytes of the same model in float32, with the same outputs.
      scheme: of SCHEMES. model: the Keras model.
      images: by input name, that calibrated the file. held_out: generated ones that did not, None
        where the images were given.
      config: settings of generated images.
      proof: operators, dtypes, inputs and outputs of the file, as F.json holds them.
    """

    tflite: bytes
    notes: dict[str, Any]
    float_tflite: bytes
    scheme: str
    model: Any
    images: Mapping[str, np.ndarray]
    held_out: Images | None
    config: dgh_tf.GenerationConfig
    proof: dict[str, Any]
    _told: dict[str, Any] = dataclasses.field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        return f"QuantizedModel({self.summary()})"

    def summary(self) -> str:
        """One line: operators, dtypes of the ends, size, algorithm."""
        name = f"{self.model.name}, {self.scheme} by {self.notes['algorithm']}"
        return summary(name, self.proof)

    def estimate(self, images: Images | None = None, *, verbose: int | str = "auto") -> Estimate:
        """Predicts, without real data, how often the file gives the float model's class.

        It judges on generated images that did not calibrate the file. What `quantize` did not make
        already is generated on the first call; a further call costs nothing.

        Args:
          images: to judge on instead, float32 [images, ...] in the model's input units or a dict by
            input name; none may have calibrated the file.
          verbose: as for `dgh_tf.generate_images`.
        Raises: ValueError: images of other shapes, or a model whose tensors cannot be followed.

        Example:
          >>> quantized.estimate().agreement
        """
        if images is not None:
            return self._judged({"given": images})
        if "estimate" not in self._told:
            model = dgh_tf.Prepared(self.model)
            unstretched = generate_to_judge(model, self.config, verbose=verbose, stretched=False)
            stretched = self.held_out
            if stretched is None:
                stretched = generate_to_judge(model, self.config, verbose=verbose, stretched=True)
            self._told["estimate"] = self._judged({STRETCHED: stretched, UNSTRETCHED: unstretched})
        return self._told["estimate"]

    def _judged(self, kinds: Mapping[str, Images]) -> Estimate:
        from dgh_tf.models.batchnorm import has_statistics

        with held_stderr():  # LiteRT announces its delegate
            return estimate(
                self.float_tflite,
                self.tflite,
                kinds,
                same_inside=self.notes["algorithm"] != "equalization",
                layers=layer_names(self.model),
                statistics=has_statistics(self.model),
            )

    def check_targets(self, *names: str) -> TargetReports:
        """Asks each target's own tools what they make of the file.

        Args:
          *names: such as "ethos-u55-128", "edgetpu", "tflm", "cpu" (docs/guide/targets.md).
        Raises: ValueError: an unknown target, one without its tool, or one that cannot take the
          scheme.

        Example:
          >>> print(quantized.check_targets("tflm"))
        """
        chosen = targets.check_targets(names, scheme=self.scheme)
        found = targets.judge(self.tflite, targets=chosen, float_tflite=self.float_tflite).verdicts
        self._told.setdefault("targets", {}).update(found)
        return TargetReports(found)

    def save(self, path: str | os.PathLike[str]) -> pathlib.Path:
        """Writes F.tflite, and F.json with the proof and what was estimated and checked by now.

        Both are written whole or not at all. Returns: the path of the .tflite file.
        Raises: ValueError for another ending than .tflite; OSError.
        """
        file, proof_file = output_paths(pathlib.Path(path))
        report = {**self.proof, "algorithm": self.notes["algorithm"], "algorithm_notes": self.notes}
        if "mixed" in self.notes:
            report["mixed"] = self.notes["mixed"]
        report["targets"] = self._told.get("targets", {})
        if "estimate" in self._told:
            found: Estimate = self._told["estimate"]
            report |= {"estimate": found.as_json(), "verdict": found.verdict}
        write_set({file: self.tflite, proof_file: proof_bytes(report)})
        return file


def _one_or_all(images: Mapping[str, np.ndarray]) -> Images:
    return images if len(images) > 1 else next(iter(images.values()))


def _checked(model: Any, images: Images) -> dict[str, np.ndarray]:
    """The images by input name; what is odd about their units is warned of."""
    arrays, doubts = checked_images(
        model,
        collected(model, images),
        value_range=None,
        what="images",
        preprocess=None,
        input_range=None,
    )
    for text in doubts:
        warnings.warn(text, UserWarning, stacklevel=3)
    return arrays


def _proof(
    tflite: bytes,
    scheme: str,
    model: Any,
    images: Mapping[str, np.ndarray],
    model_sha256: str | None,
) -> dict[str, Any]:
    return proof(
        tflite,
        scheme=scheme,
        float_weight_bytes=weight_bytes(model),
        images=images,
        calibration_sha256=digest(_one_or_all(images)),
        model_sha256=model_sha256,
    )


def quantize(
    model: Any,
    images: Images | None = None,
    *,
    scheme: str = "int8",
    algorithm: str = "best",
    head: str = "model",
    seed: int = 0,
    config: dgh_tf.GenerationConfig | None = None,
    verbose: int | str = "auto",
    timeout: float | None = None,
    max_kib: float | None = None,
    min_agreement: float | None = None,
    **options: Any,
) -> QuantizedModel:
    """Turns a float model into a full-integer .tflite file, as the command convert does.

    Args:
      model: a trained Keras model, which is left unchanged, or the path of one.
      images: that calibrate the file: float32 [number, ...input shape] in the model's input units,
        or a dict by input name. Left out, they are generated from the model.
      scheme: "int8", "int16x8", "w4a8" or "mixed".
      algorithm: "best" or one of algorithms.by_name.NAMES.
      head: "logits" leaves out a softmax, a sigmoid or a choice (argmax) at the end.
      seed: of what the algorithm draws.
      config: settings of generated images, which have a seed of their own.
      verbose: progress; "auto" or 1 as Keras shows it, 0 is silent.
      timeout: seconds of each conversion.
      max_kib: of scheme "mixed": the most KiB (1024 bytes) the file may take.
      min_agreement: of scheme "mixed", instead of max_kib: the agreement with the float model,
        0..1, that the smallest file should keep. Without both: three quarters of what 4 bits
        everywhere save.
      **options: of one algorithm alone, such as steps=300.
    Raises:
      ValueError: unknown names, bad images, or a model that cannot be quantized like this.
      TypeError: no model. ConversionError: the converter failed. IntegerError: something stayed
        float.

    Example:
      >>> quantized = quantize("demo", config=dgh_tf.GenerationConfig(num_images=8, steps=6))
      >>> quantized.save("demo.tflite")
    """
    from dgh_tf.models.given import given_model
    from dgh_tf.models.loading import model_sha256

    if isinstance(verbose, bool) or verbose not in _VERBOSE:
        raise ValueError(f"verbose={verbose!r}: expected 'auto', 0, 1 or 2.")
    check_options(options, algorithm=check_algorithm(algorithm, scheme=scheme, head=head))
    check_limit(Limit(max_kib=max_kib, min_agreement=min_agreement), scheme=scheme)
    named = isinstance(model, str | os.PathLike)
    sha256 = model_sha256(os.fspath(model)) if named else None
    given, settings = given_model(model), config or dgh_tf.GenerationConfig()
    keras_model = without_choices(given) if head == "logits" else given
    held_out = None
    if images is None:
        if getattr(keras_model, "inputs", None):
            input_shapes(keras_model)  # raises before images are made
        images, held_out = generate(keras_model, settings, verbose=verbose)
    arrays = _checked(keras_model, images)
    if verbose in ("auto", 1):
        print(f"converting to {scheme}, algorithm {algorithm}", flush=True)
    float_tflite = whole = to_float_tflite(keras_model, images=arrays, timeout=timeout)
    left = left_to_cut(head, whole, chose=keras_model is not given)
    if left == "logits":
        float_tflite = without_softmax(float_tflite).data
    made = quantize_with(
        keras_model,
        arrays,
        scheme=scheme,
        algorithm=algorithm,
        head=left,
        seed=seed,
        say=None,
        timeout=timeout,
        float_tflite=whole,
        max_kib=max_kib,
        min_agreement=min_agreement,
        **options,
    )
    return QuantizedModel(
        tflite=made.tflite,
        notes={**made.notes, "head": head},
        float_tflite=float_tflite,
        scheme=scheme,
        model=keras_model,
        images=arrays,
        held_out=held_out,
        config=settings,
        proof=_proof(made.tflite, scheme, keras_model, arrays, sha256),
    )
