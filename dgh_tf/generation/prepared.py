"""A model made ready once for several generations."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from dgh_tf.models.given import given_model

T = TypeVar("T")


class Prepared:
    """A model whose generations share what their settings have in common: its range, its traces.

    Give it wherever a generation takes a model. The first one takes as long as ever. A later one
    that differs in num_images, steps, seed or output_weight alone starts several seconds sooner,
    and its images are the same as without.

    Between generations the model must not change: what was read of it is not read again.

    Example:
      >>> import dgh_tf
      >>> model = dgh_tf.Prepared("demo")
      >>> sets = [dgh_tf.generate_images(model, num_images=2, steps=3, seed=s, verbose=0)
      ...         for s in (0, 1)]
    """

    def __init__(self, model: Any) -> None:
        """model: a Keras model, or the path of one. Raises what `load_model` raises."""
        self.model = given_model(model)
        self._made: dict[Hashable, Any] = {}

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` gives, made on the first call with this key."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def prepared(model: Any) -> Prepared:
    """The model made ready; as it is where it is already."""
    return model if isinstance(model, Prepared) else Prepared(model)
