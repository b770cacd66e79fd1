"""The model's inputs as they are drawn from canvases, each by its layout and valid range."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from dgh_tf.config import GenerationConfig
from dgh_tf.generation.objective import LARGEST_REACH, PseudoStatistics, pseudo_statistics
from dgh_tf.input_range.conventions import InputRange
from dgh_tf.input_range.find import KnownInput
from dgh_tf.ops import canvas
from dgh_tf.ops.signals import CANVAS_STD, CanvasUnits, draw_signal, drawn

# Deviations that a band reaches: in log-mel patches of speech and music 5 to 7. Fewer in a free
# range: one scale serves all bands, so that the tails of the strongest cost the others their
# resolution. DS-CNN keyword spotting: 27 dB with 3, 22 with 4.
BAND_TAILS, FITTED_TAILS = 6.0, 3.0
# Of a layer's largest output over a set, in units of the mean of the signals' own, for each
# deviation that the range holds on its wider side. Signals that were scaled to fill 0..1 or -1..1
# in every window hold 2 to 5 and cannot be much larger than others; loud and quiet ones need 8 and
# more. Sequences of fewer than FILLED_DEVIATIONS (standardized ones have 8 to 8.6) come to the
# layers' largest outputs without being led there. Chosen on even-numbered evaluation signals.
REACH_PER_DEVIATION, LEAST_REACH = 0.32, 1.6
FILLED_DEVIATIONS = 9.0
PLAIN_EVERY = 2
_LEAST_CONTRAST = 0.03  # of a plain image, as a share of what others have
_LEAST_STD = 1e-3  # of a column in units of the range: a canvas must be able to move it


def is_plain(number: Any) -> Any:
    """Whether images of these numbers in the set are plain where the model has no statistics: of
    any contrast down to nearly none, and left as they start.

    Training saw flat skies and quiet seconds, too, and what normalizes each image takes its widest
    ranges from those; stretching would draw texture on them.

    Args:
      number: an int, or an integer array or tensor.
    """
    return number % PLAIN_EVERY == PLAIN_EVERY - 1


@dataclasses.dataclass(frozen=True)
class Inputs:
    """How every input of a model is drawn, in the model's order of inputs.

    plain: whether every other start image is a plain one, see `is_plain`.
    """

    layouts: Sequence[canvas.Layout]
    known: Sequence[KnownInput]
    plain: bool = False

    @property
    def ranges(self) -> list[InputRange]:
        return [known.valid for known in self.known]

    @functools.cached_property
    def _units(self) -> list[CanvasUnits | None]:
        return [_canvas_units(known) for known in self.known]

    def start(self, number: int, *, first: int, size: int, config: GenerationConfig) -> np.ndarray:
        """Start canvases of input `number` for the images first .. first + size of the set.

        Returns: float32 [size, *canvas shape].
        """
        images = range(first, first + size)
        canvases = self._start(number, images, config)
        if self.plain:
            for place, image in enumerate(images):
                if is_plain(image):
                    canvases[place] = self._flattened(number, canvases[place], image, config.seed)
        return canvases

    def _start(self, number: int, images: range, config: GenerationConfig) -> np.ndarray:
        layout, std, inputs = self.layouts[number], self.ranges[number].prior_std, len(self.layouts)
        if self._units[number] is not None:
            if config.start != "white":
                return self._start_signals(number, images, config)
            std = CANVAS_STD
        canvases = np.empty((len(images), *layout.canvas_shape), np.float32)
        for place, image in enumerate(images):
            canvases[place] = canvas.start_canvas(
                layout.canvas_shape,
                index=image * inputs + number,
                seed=config.seed,
                std=std,
                start=config.start,
            )
        return canvases

    def _flattened(self, number: int, values: np.ndarray, image: int, seed: int) -> np.ndarray:
        """A canvas of less contrast around its mean colour, or of a signal, around the mean of all
        signals.
        """
        generator = np.random.default_rng([seed, image, 1])
        contrast = np.exp(generator.uniform(np.log(_LEAST_CONTRAST), 0.0))
        picture = self._units[number] is None and canvas.is_image(values.shape)
        level = values.mean(axis=(0, 1)) if picture else 0.0
        return (level + contrast * (values - level)).astype(np.float32)

    def _start_signals(
        self, number: int, images: Iterable[int], config: GenerationConfig
    ) -> np.ndarray:
        known, units = self.known[number], self._units[number]
        assert known.signal and known.spectrum and units  # for the type checker
        signals = [
            draw_signal(
                known.signal,
                known.spectrum,
                generator=np.random.default_rng([config.seed, image * len(self.known) + number]),
                family=config.start == "leaves",
            )
            for image in images
        ]
        low, high = known.valid.low, known.valid.high
        values = known.signal.to_input(np.stack(signals)).astype(np.float32)
        placed = np.asarray(canvas.to_canvas(values, low=low, high=high))
        return ((placed - units.offset) / units.scale).astype(np.float32)

    def augment(self, canvases: Sequence[tf.Tensor], *, seed: tf.Tensor) -> list[tf.Tensor]:
        """Augmented images in canvas units. seed: int32 [2], see `canvas.augment`."""
        parts = zip(canvases, self.layouts, self._units, strict=True)
        return [
            drawn(c, units) if units else canvas.augment(c, layout, seed=seed)
            for c, layout, units in parts
        ]

    def finish(self, canvases: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """The images that canvases stand for, in canvas units."""
        parts = zip(canvases, self.layouts, self._units, strict=True)
        return [
            drawn(c, units) if units else canvas.finish(c, layout) for c, layout, units in parts
        ]

    def to_model(self, units: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Images in model units from images in canvas units."""
        pairs = zip(units, self.ranges, strict=True)
        return [canvas.to_model(u, low=r.low, high=r.high) for u, r in pairs]

    def to_canvas(self, images: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Images in canvas units from images in model units."""
        pairs = zip(images, self.ranges, strict=True)
        return [canvas.to_canvas(x, low=r.low, high=r.high) for x, r in pairs]


def largest_reach(known: Sequence[KnownInput]) -> float | None:
    """`Problem.reach` of signals: how far the largest value of a set can lie above those that
    single signals have. Of several inputs the one that leaves most room. None for pictures, and for
    sequences whose range holds few deviations.

    Example: a spectrogram in a range of -1..1 around values of mean 0 and deviation 0.15 holds 6.7
      deviations, which gives 2.1; one of 8 deviations gives LARGEST_REACH, and so does a guessed
      range, since nobody knows how far its signals go.
    """
    deviations = []
    for each in known:
        units = _canvas_units(each)
        if units is None:
            return None
        mean = float(units.offset.mean())
        power = np.square(units.scale * CANVAS_STD).mean() + units.offset.var()
        held = (1.0 + abs(mean)) / float(np.sqrt(power))
        deviations.append(np.inf if each.valid.fitted else held)
    most = max(deviations)
    if most < FILLED_DEVIATIONS and all(each.kind == "sequence" for each in known):
        return None
    return float(np.clip(REACH_PER_DEVIATION * most, LEAST_REACH, LARGEST_REACH))


def natural_statistics(known: KnownInput, shape: tuple[int, ...]) -> PseudoStatistics:
    """Pseudo-statistics of an input of `shape` where no statistics of the model hold it.

    A picture has those of its range. A signal has the mean and deviation of its spectrum, of every
    column where an axis of the input holds the columns.
    """
    units = _canvas_units(known)
    if units is None:
        return pseudo_statistics(known.valid, shape)
    mean, std = units.offset[0], np.broadcast_to(units.scale[0] * CANVAS_STD, shape)
    axis = _column_axis(std, mean)
    others = tuple(i for i in range(len(shape)) if i != axis)
    within, between = (std**2).mean(axis=others), mean.var(axis=others)
    return PseudoStatistics(
        name="input",
        axis=axis + 1,
        epsilon=_LEAST_STD**2,
        mean=mean.mean(axis=others).astype(np.float32),
        variance=(within + between).astype(np.float32),
    )


def _column_axis(*values: np.ndarray) -> int:
    """The only axis along which arrays of one shape vary; the last one where there are several."""
    for axis in range(values[0].ndim):
        rows = [np.moveaxis(value, axis, -1).reshape(-1, value.shape[axis]) for value in values]
        if all((row == row[0]).all() for row in rows):
            return axis
    return values[0].ndim - 1


def _canvas_units(known: KnownInput) -> CanvasUnits | None:
    """A signal's canvas in units where the valid range is [-1, 1]: every column varies by
    CANVAS_STD on its canvas, however little it does in the range. None for a picture.
    """
    signal, spectrum, valid = known.signal, known.spectrum, known.valid
    if signal is None or spectrum is None:
        return None

    def as_input(columns: np.ndarray) -> np.ndarray:
        plane = np.broadcast_to(columns, (1, signal.length, signal.columns))
        return signal.to_input(plane).astype(np.float32)

    low, high = (np.asarray(bound, np.float32) for bound in (valid.low, valid.high))
    std = as_input(spectrum.std) * (2.0 / (high - low))
    offset = (as_input(spectrum.mean) - low) * (2.0 / (high - low)) - 1.0
    tails = np.inf
    if signal.kind == "spectrogram":
        tails = FITTED_TAILS if valid.fitted else BAND_TAILS
    return CanvasUnits(
        offset=np.clip(offset, -1.0, 1.0),
        scale=np.clip(std, _LEAST_STD, 1.0) / CANVAS_STD,
        reach=tails * np.clip(std, _LEAST_STD, 1.0),
    )
