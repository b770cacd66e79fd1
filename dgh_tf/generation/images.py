"""Calibration images from a model in one call: what the command generate does, in Python."""

from __future__ import annotations

import dataclasses
import pathlib
import warnings
from collections.abc import Callable
from typing import Any, Unpack

import numpy as np
import tensorflow as tf

from dgh_tf.common.convergence import judge_convergence
from dgh_tf.config import GenerationConfig, Settings
from dgh_tf.generation.generator import Generator
from dgh_tf.generation.update import Progress

VERBOSE = ("auto", 0, 1, 2)


def generate_images(
    model: Any,
    config: GenerationConfig | None = None,
    *,
    verbose: int | str = "auto",
    report: Callable[[Progress], bool | None] | None = None,
    real_hint: str | pathlib.Path | np.ndarray | None = None,
    strategy: str | tf.distribute.Strategy | None = None,
    **settings: Unpack[Settings],
) -> np.ndarray | dict[str, np.ndarray]:
    """Images whose statistics in `model` are those of its training set (DGH, WACV 2025).

    What statistics the model has are matched. A model without any gets images that follow
    natural-image priors and stretch its outputs; `Generator.network.evidence` tells which.

    Args:
      model: a trained Keras model, which is left unchanged, the path of one, or `Prepared`.
      config: the settings in one object; the defaults where None.
      verbose: "auto" or 1 shows Keras' progress bar, 2 one line at the end, 0 nothing.
      report: called with the progress about every two seconds; returning True ends the run early.
      real_hint: 1 to 32 real images, a folder or an array (see `real_images.load_hint`): their
        statistics are pooled with those of the generated ones, and they stand at the end of what is
        returned.
      strategy: devices to run on, by the setting's name ("mirrored") or as an object.
      **settings: those of `GenerationConfig`, such as num_images=64, steps=100, seed=0,
        input_range=(0, 255), instead of `config`.
    Returns: float32 [num_images (+ real ones), *input shape] in the model's input units; a dict by
      input name for several inputs.
    Raises: TypeError for an argument of the wrong kind; ValueError when the model or a setting
      cannot work; FloatingPointError when the loss diverges.
    Warns: UserWarning when the images did not reach the model's statistics.

    Example:
      >>> import dgh_tf
      >>> images = dgh_tf.generate_images("demo", num_images=4, steps=6, seed=1, verbose=0)
      >>> images.shape, images.dtype
      ((4, 64, 64, 3), dtype('float32'))
    """
    if isinstance(verbose, bool) or verbose not in VERBOSE:
        raise ValueError(f"verbose={verbose!r}: expected 'auto', 0, 1 or 2.")
    named = {"strategy": strategy} if isinstance(strategy, str) else {}
    chosen = _one_config(config, {**settings, **named})
    if verbose in ("auto", 1):  # the bar begins with the first step, after seconds of tracing
        print(f"{chosen.num_images} images: finding the input range, tracing", flush=True)
    generator = Generator(
        model,
        chosen,
        strategy=None if named else strategy,
        real_hint=real_hint,
    )
    generator.start()
    generator.run(report=_shown(report, generator.config.steps, verbose))
    gaps = generator.layer_gaps() if generator.network.layers else {}
    convergence = judge_convergence(gaps) if gaps else None
    if convergence and convergence.level == "poor":
        text = f"The images did not converge: {convergence.summary}. {convergence.advice}"
        warnings.warn(text, UserWarning, stacklevel=2)
    images = generator.all_images()
    if len(images) == 1:
        return images[0]
    return dict(zip(generator.network.input_names, images, strict=True))


def _one_config(config: GenerationConfig | None, settings: dict[str, Any]) -> GenerationConfig:
    """The settings, given as an object or as keyword arguments. Raises TypeError for both."""
    known = [field.name for field in dataclasses.fields(GenerationConfig)]
    unknown = [name for name in settings if name not in known]
    if unknown:
        raise TypeError(
            f"{', '.join(unknown)}: no such setting. GenerationConfig has {', '.join(known)}."
        )
    if config is None:
        return GenerationConfig(**settings)
    if not isinstance(config, GenerationConfig):
        raise TypeError(
            f"config: expected a GenerationConfig, got {type(config).__name__}. Settings can also "
            "be given as keyword arguments, such as num_images=64."
        )
    if settings:
        raise TypeError(
            f"Both config and {', '.join(settings)} were given. Put all settings into config, or "
            "give all as keyword arguments."
        )
    return config


def _shown(
    report: Callable[[Progress], bool | None] | None, steps: int, verbose: int | str
) -> Callable[[Progress], bool | None] | None:
    """`report` with Keras' progress bar in front of it."""
    if verbose == 0:
        return report
    from keras.utils import Progbar

    bar = Progbar(steps, verbose=1 if verbose == "auto" else verbose, unit_name="step")

    def show(progress: Progress) -> bool | None:
        figures = {"loss": progress.losses["loss"], "statistics gap": progress.losses["bn"]}
        # each report is of the steps since the last one, so that nothing is to be averaged
        bar.stateful_metrics.update(figures)
        bar.update(progress.step, values=list(figures.items()))
        return report(progress) if report else None

    return show
