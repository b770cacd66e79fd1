"""Flags of every command that generates its calibration images, one set for each seed."""

from __future__ import annotations

from absl import flags

from dgh_tf.ops.kinds import KINDS


def define_generation_flags() -> None:
    """The flags that `benchmarks.measure.comparison.seeded_configs` reads."""
    flags.DEFINE_integer("num_images", 64, "Calibration images of every source.", lower_bound=1)
    flags.DEFINE_integer("seeds", 3, "Number of seeds: 0, 1, ...", lower_bound=1)
    flags.DEFINE_integer("steps", 100, "Optimizer steps of the generated sources.", lower_bound=1)
    flags.DEFINE_integer("batch_size", 32, "Images at once in generation.", lower_bound=1)
    flags.DEFINE_string(
        "input_range",
        "",
        "Valid input range LOW,HIGH or a convention; empty: found from the model.",
    )
    flags.DEFINE_enum(
        "input_kind", "auto", ["auto", *KINDS], "What the input is; auto tells it from the shape."
    )
