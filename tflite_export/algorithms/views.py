"""More views of calibration pictures, for what is learned on them: parts enlarged, half of them
mirrored.

A layer behind a global pooling sees one vector of each image: with 64 images a learned rounding can
be right on all of them and wrong elsewhere. Views of the same images cost no generation. Zhong et
al. 2022, "IntraQ", enlarges parts of half to all of the area, too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dgh_tf.models.tflite.run import Graph
from tflite_export.algorithms.blocks import Values, outside

_VIEWS = 8  # of a picture, with itself
_LEAST_AREA = 0.5  # of a part that is enlarged
_LEAST_SIDE = 32  # pixels: what is smaller, or has other channels, may be no picture
_MOST_VALUES = 2**27  # of the views of all images: 0.5 GiB
_MOST_LEARNED = 2**25  # of all that a block reads: 128 MiB


def views_of(graph: Graph, *, count: int) -> int:
    """How many views of each of `count` images to learn on; 1, the image alone, where the input is
    no picture.
    """
    shapes = [graph.tensors[i].shape for i in graph.inputs]
    if len(shapes) != 1 or len(shapes[0]) != 4:
        return 1
    _, height, width, channels = shapes[0]
    if channels != 3 or min(height, width) < _LEAST_SIDE:
        return 1
    return min(_VIEWS, max(1, _MOST_VALUES // (height * width * channels * count)))


def first_with_views(graph: Graph, spans: Sequence[range], *, images: int) -> int:
    """Place of the first span from which on what each reads of so many images fits into memory.

    Early layers need no views: they see thousands of positions of each image.
    """
    place = len(spans)
    while place:
        read, _ = outside(graph, spans[place - 1])
        values = sum(int(np.prod(graph.tensors[i].shape[1:])) for i in read)
        if values * images > _MOST_LEARNED:
            break
        place -= 1
    return place


def other_views(images: Values, *, views: int, seed: int) -> Values:
    """`views` - 1 times a part of each picture in the size of the whole, half of them mirrored.

    Args:
      images: float32 [images, height, width, channels] by tensor index.
      views: at least 2.
      seed: of the parts.
    """
    import tensorflow as tf

    generator = np.random.default_rng(seed)
    made: dict[int, list[np.ndarray]] = {i: [] for i in images}
    count = len(next(iter(images.values())))
    for _ in range(views - 1):
        side = np.sqrt(generator.uniform(_LEAST_AREA, 1.0, count))
        top, left = (generator.uniform(0.0, 1.0, count) * (1 - side) for _ in range(2))
        ends = left, left + side
        mirrored = generator.random(count) < 0.5
        first, last = (np.where(mirrored, b, a) for a, b in (ends, ends[::-1]))
        boxes = np.stack([top, first, top + side, last], 1).astype(np.float32)
        for i, array in images.items():
            parts = tf.image.crop_and_resize(array, boxes, np.arange(count), array.shape[1:3])
            made[i].append(parts.numpy())
    return {i: np.concatenate(arrays) for i, arrays in made.items()}
