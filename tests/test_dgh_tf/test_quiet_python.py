"""What one process that works on many models, or on Keras 2 files, leaves on the terminal."""

import gc
import logging

import numpy as np
import pytest
import tf_keras
import tiny_models

import dgh_tf
from dgh_tf.models.first_statistics import first_gap


@pytest.fixture
def told():
    """The lines that TensorFlow's Python code logs during the test."""
    lines = []

    class Kept(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())

    logger, kept = logging.getLogger("tensorflow"), Kept(logging.WARNING)
    logger.addHandler(kept)
    level = logger.level
    logger.setLevel(logging.WARNING)
    yield lines
    logger.setLevel(level)
    logger.removeHandler(kept)


def test_many_models_in_one_process_bring_no_word_of_retracing(told):
    """TensorFlow warns from the fifth on; the warning has to be there without the filter."""
    import tensorflow as tf

    for _ in range(6):
        first_gap(tiny_models.vector(), [tiny_models.images(4, shape=(24,))])
    assert told == []
    for _ in range(6):
        tf.function(lambda x: x + 1.0)(tf.zeros(3))
    assert any("retracing" in line for line in told)


@pytest.mark.slow
def test_images_of_many_models_bring_no_word_of_retracing(told):
    for _ in range(6):
        model = tiny_models.vector()
        dgh_tf.generate_images(model, num_images=2, steps=1, input_range="-1,1", verbose=0)
    assert told == []


@pytest.mark.parametrize("form", ["h5", "keras", "tf"])
def test_a_trained_keras2_file_says_nothing(form, told, tmp_path, recwarn, capfd):
    """Compiled, so that the file holds an optimizer and metrics, which nothing here reads."""
    model = tiny_models.vector(keras=tf_keras)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(tiny_models.images(4, shape=(24,)), np.arange(4) % 3, verbose=0)
    path = tmp_path / ("m" if form == "tf" else f"m.{form}")
    model.save(path, save_format=form)
    capfd.readouterr()
    told.clear()
    recwarn.clear()
    dgh_tf.load_model(path)
    gc.collect()  # what was not read is told of at the end of the objects that read
    assert told == [] and [str(each.message) for each in recwarn] == []
    assert capfd.readouterr() == ("", "")
