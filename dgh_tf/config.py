"""math: every setting of a generation run in one flat frozen dataclass; the command's flags are
derived from it.
"""

from __future__ import annotations

import dataclasses
import math


def _setting(default, help_text: str):
    return dataclasses.field(default=default, metadata={"help": help_text})


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """Settings of one run. Raises ValueError for a value out of bounds, naming the setting.

    Lengths and rates are in canvas units, in which the model's valid input range is [-1, 1].
    """

    num_images: int = _setting(
        64, "Images to generate; their pooled statistics are one joint problem."
    )
    batch_size: int = _setting(
        32, "Images on a replica at once. Memory grows with it; the result hardly depends on it."
    )
    steps: int = _setting(100, "Optimizer steps of every image.")
    seed: int = _setting(
        0, "Start images, flips, crops and batch order follow from it and the step alone."
    )
    input_range: str = _setting(
        "",
        "Valid input range LOW,HIGH of the model, or a convention such as unit, "
        "byte, symmetric, imagenet; for "
        "several inputs also NAME:RANGE;NAME:RANGE, in quotes. Empty: read from the "
        "model's layers, "
        "else found from the first statistics.",
    )
    image_size: str = _setting("", "HEIGHT,WIDTH for a model whose spatial size is dynamic.")
    learning_rate: float = _setting(0.1, "Peak step size in canvas units.")
    beta1: float = _setting(0.8, "Weight of the past in RAdam's mean of gradients.")
    beta2: float = _setting(
        0.9,
        "The same for their squares; a run is 100 steps, and longer memories lag "
        "behind falling gradients.",
    )
    schedule: str = _setting(
        "cosine", "cosine (to zero) or plateau (halve when the loss stalls, as the references do)."
    )
    bn_weight: float = _setting(1.0, "Weight of the BatchNorm statistics loss.")
    std_weight: float = _setting(
        1.0, "Weight of the standard deviations against the means in that loss."
    )
    output_weight: float = _setting(
        0.03, "Weight of output stretching, relative to each head's own spread; 0 turns it off."
    )
    stretch_limit: float = _setting(
        2.25, "Stretch outputs up to this times their spread under matched statistics; 0: no limit."
    )
    prior_weight: float = _setting(
        1.0, "Weight of the image's own pseudo-statistics; 0 turns them off."
    )
    pool_statistics: bool = _setting(
        True, "Match statistics of the whole set; off: of each batch alone."
    )
    augment: bool = _setting(
        True, "Larger canvas, smoothing, flip and crop; off: optimize the images directly."
    )
    flip: str = _setting(
        "auto", "Mirror images left-right: auto (images with three channels), on or off."
    )
    start: str = _setting(
        "leaves",
        "Start images: leaves (overlapping discs), noise (spectrum of photographs) or white noise.",
    )
    precision: str = _setting(
        "float32",
        "Of the network: float32, bfloat16 or float16; moments, losses and images stay float32.",
    )
    strategy: str = _setting(
        "one", "one device, mirrored (all devices of this machine) or multi_worker (TF_CONFIG)."
    )

    def __post_init__(self) -> None:
        self._check_counts()
        self._check_weights()
        self._check_choices()
        if self.image_size:
            parse_image_size(self.image_size)

    def _check_counts(self) -> None:
        for name, least in (("num_images", 1), ("batch_size", 1), ("steps", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} must be at least {least}, got {getattr(self, name)}.")
        if self.seed >= 2**31:
            raise ValueError(f"--seed must be below 2**31, got {self.seed}.")

    def _check_weights(self) -> None:
        for name in (
            "learning_rate",
            "bn_weight",
            "std_weight",
            "output_weight",
            "stretch_limit",
            "prior_weight",
        ):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0 or (name == "learning_rate" and value == 0):
                raise ValueError(
                    f"--{name} must be a finite number of at least 0 (a rate above 0), got {value}."
                )
        if not self.bn_weight + self.output_weight + self.prior_weight:
            raise ValueError(
                "--bn_weight, --output_weight and --prior_weight are all 0, so there "
                "is nothing to optimize. "
                "Give at least one of them a weight."
            )
        for name in ("beta1", "beta2"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(
                    f"--{name} must be at least 0 and below 1, got {getattr(self, name)}."
                )

    def _check_choices(self) -> None:
        for name, choices in (
            ("schedule", ("cosine", "plateau")),
            ("start", ("leaves", "noise", "white")),
            ("flip", ("auto", "on", "off")),
            ("precision", ("float32", "bfloat16", "float16")),
            ("strategy", ("one", "mirrored", "multi_worker")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"--{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}."
                )


def parse_image_size(text: str) -> tuple[int, int]:
    """'HEIGHT,WIDTH' in pixels as two ints. Raises ValueError for anything else."""
    try:
        height, width = (int(part) for part in text.split(","))
    except ValueError:
        height = width = 0
    if height < 1 or width < 1:
        raise ValueError(
            f"--image_size takes HEIGHT,WIDTH in pixels, for example 224,224; got {text!r}."
        )
    return height, width
