"""Small generators at a chosen point of their run, and what they hold."""

import numpy as np
import tensorflow as tf

from dgh_tf.config import GenerationConfig
from dgh_tf.generation.generator import Generator

BASE = {"num_images": 7, "batch_size": 4, "steps": 2, "input_range": "-1,1"}


def make(model, strategy=None, **settings):
    return Generator(
        model,
        GenerationConfig(**{**BASE, **settings}),
        strategy=strategy or tf.distribute.OneDeviceStrategy("CPU:0"),
    )


def started(model, strategy=None, **settings):
    generator = make(model, strategy, **settings)
    generator.start()
    return generator


def first_step(generator):
    """After one step RAdam does not move yet: canvases are those of the start and the first slot is
    (1 - beta1) * gradient.
    """
    generator.run(report=lambda progress: progress.step >= 1, due=lambda: (True, False))
    return generator


def slots(generator):
    """(canvases, first slots, rows of the table) of a model with one input, each a list by
    batch.
    """
    records = [generator.store.read(place) for place in range(len(generator.batches))]
    (canvases, first) = ([getattr(r, name)[0] for r in records] for name in ("canvases", "first"))
    return canvases, first, [record.row for record in records]


def stopped_after(generator, visits):
    """Runs so many visits more; returns the figures of the last report."""
    until, asked, reports = generator.state.visits + visits, iter(range(visits)), []
    generator.run(report=reports.append, due=lambda: (False, next(asked) + 1 == visits))
    assert generator.state.visits == until
    return reports[-1].losses


def spread_of(model, images):
    """Largest minus smallest output of each image."""
    outputs = np.asarray(model(images))
    return outputs.max(1) - outputs.min(1)
