"""Calibration images for a conversion that was given none: made by dgh_tf, in a folder that
serves the next conversion of the same model, too.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

import dgh_tf
from dgh_tf import GenerationConfig
from dgh_tf.common import console
from tflite_export.calibration.check import Images
from tflite_export.calibration.hold_out import held_out_count, hold_out
from tflite_export.calibration.load import Calibration, digest, load_calibration

STRETCHED, UNSTRETCHED = "stretched", "unstretched"
_SEED = 1000  # further, so that these images begin elsewhere than those that calibrate


@dataclasses.dataclass(frozen=True)
class Generated:
    """calibration: what calibrates. held_out: images by kind that judge the file."""

    calibration: Calibration
    held_out: Mapping[str, Images]


def _stretched(config: GenerationConfig) -> GenerationConfig:
    """The images that calibrate and those of them that judge, in one set."""
    more = held_out_count(config.num_images)
    return dataclasses.replace(config, num_images=config.num_images + more)


def _judging(config: GenerationConfig) -> GenerationConfig:
    """Images that judge alone, in a set of their own."""
    return dataclasses.replace(
        config,
        num_images=held_out_count(config.num_images),
        seed=(config.seed + _SEED) % 2**31,
    )


def generate_into(
    folder: pathlib.Path, config: GenerationConfig, *, model: str, loaded: Any, **how: Any
) -> Generated:
    """Generates what a conversion needs into a folder, or reads it there.

    The page of the folder is left to the conversion, which tells of its file there.

    Args:
      folder: made where it is missing.
      config: of the images that calibrate; some more are made to judge.
      model: what `dgh_tf.load_model` takes.
      loaded: the Keras model that it names.
      **how: more options of `dgh_tf.generate_to`.
    Raises: what `dgh_tf.generate_to` raises.
    """
    # both sets share the range and the traces of one model
    how |= {"model": model, "loaded": dgh_tf.Prepared(loaded), "page": False}
    dgh_tf.generate_to(folder, config=_stretched(config), **how)
    console.say("images that judge the file, without output stretching")
    unstretched = dgh_tf.generate_to(
        folder / UNSTRETCHED,
        config=dataclasses.replace(_judging(config), output_weight=0.0),
        **how,
    )
    whole = load_calibration(folder)
    rest, held = hold_out(whole.images, held_out_count(config.num_images))
    calibration = dataclasses.replace(whole, images=rest, sha256=digest(rest))
    return Generated(calibration, {STRETCHED: held, UNSTRETCHED: _in_memory(unstretched)})


def generate(model: Any, config: GenerationConfig, *, verbose: int | str) -> tuple[Images, Images]:
    """(images that calibrate, those that judge with stretched outputs) of a Keras model."""
    made = dgh_tf.generate_images(model, _stretched(config), verbose=verbose)
    return hold_out(made, held_out_count(config.num_images))


def generate_to_judge(
    model: Any, config: GenerationConfig, *, verbose: int | str, stretched: bool
) -> Images:
    """Images of one kind that judge a file; none of them calibrates."""
    judging = _judging(config)
    if not stretched:
        judging = dataclasses.replace(judging, output_weight=0.0)
    return dgh_tf.generate_images(model, judging, verbose=verbose)


def _in_memory(images: Images) -> Images:
    from tflite_export.conversion.freeze import plain

    if isinstance(images, Mapping):
        return {plain(name): np.asarray(array) for name, array in images.items()}
    return np.asarray(images)
