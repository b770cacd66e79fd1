"""What one calls from Python: settings in natural types, models by any name, clear errors, and the
examples in the documentation of every public name.
"""

import contextlib
import dataclasses
import doctest
import inspect
import io
import pathlib
import typing

import numpy as np
import pytest
import tiny_models

import dgh_tf
from dgh_tf.config import GenerationConfig, Settings

DEMO = pathlib.Path(dgh_tf.__file__).parent / "demo" / "demo.keras"


@pytest.mark.parametrize("name", dgh_tf.__all__)
def test_examples_of_public_names_run(name, tmp_path, monkeypatch):
    """Whatever a run prints is not compared; what an example says it gives is."""
    monkeypatch.chdir(tmp_path)
    if name == "write_report":
        config = GenerationConfig(num_images=4, batch_size=4, steps=2)
        dgh_tf.generate_to("images", model="demo", config=config)
    thing = getattr(dgh_tf, name)
    home = inspect.getmodule(thing)
    (found,) = doctest.DocTestFinder(recurse=False).find(thing, name, home)
    assert found.examples, f"{name} has no example"
    names = dict(found.globs)
    for example in found.examples:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(example.source, name, "single"), names)
        assert printed.getvalue() == example.want or not example.want


def test_natural_types_are_kept_as_the_command_takes_them():
    config = GenerationConfig(
        input_range=(0, 255), image_size=(224, 224), steps=np.int64(7), learning_rate=1
    )
    typed = GenerationConfig(input_range="0,255", image_size="224,224", steps=7, learning_rate=1.0)
    assert config == typed and repr(config) == repr(typed)  # so a run of one goes on with the other
    assert type(config.steps) is int and type(config.learning_rate) is float
    assert GenerationConfig(input_range=np.array([-1, 1.5])).input_range == "-1,1.5"
    several = GenerationConfig(input_range={"left": "byte", "right": [-1, 1]})
    assert several.input_range == "left:byte;right:-1,1"
    assert GenerationConfig(input_range=None, image_size=None) == GenerationConfig()


@pytest.mark.parametrize(
    "setting, value, error",
    [
        ("num_images", "32", TypeError),
        ("num_images", 0, ValueError),
        ("steps", 1e2, TypeError),
        ("steps", True, TypeError),
        ("seed", 2**31, ValueError),
        ("seed", -1, ValueError),
        ("learning_rate", "0.1", TypeError),
        ("learning_rate", 0, ValueError),
        ("learning_rate", float("nan"), ValueError),
        ("bn_weight", float("inf"), ValueError),
        ("beta1", 1.0, ValueError),
        ("augment", "yes", TypeError),
        ("flip", "no", ValueError),
        ("flip", None, TypeError),
        ("input_range", 5, TypeError),
        ("input_range", (0, 1, 2), TypeError),
        ("input_range", (1, 0), ValueError),
        ("input_range", (0, float("inf")), ValueError),
        ("image_size", 224, TypeError),
        ("image_size", (224, 2.5), TypeError),
        ("image_size", (0, 224), ValueError),
        ("image_size", "224", ValueError),
    ],
)
def test_a_wrong_setting_is_one_error_that_names_it(setting, value, error):
    with pytest.raises(error, match=f"^{setting}=") as caught:
        GenerationConfig(**{setting: value})
    assert "--" not in str(caught.value)


def test_settings_as_keyword_arguments_are_those_of_the_config():
    fields = {field.name for field in dataclasses.fields(GenerationConfig)}
    assert set(typing.get_type_hints(Settings)) == fields - {"strategy"}


SMALL = {"num_images": 3, "steps": 2, "input_range": (-1, 1)}


def test_settings_and_config_give_the_same_images_without_a_word(capsys):
    model = tiny_models.conv_bn_relu()
    with pytest.warns(
        UserWarning, match="did not converge: mean statistics gap .* \\(poor; layers"
    ):
        images = dgh_tf.generate_images(model, **SMALL, verbose=0)
    with pytest.warns(UserWarning):
        same = dgh_tf.generate_images(model, GenerationConfig(**SMALL), verbose=0)
    assert images.shape == (3, 16, 16, 3) and images.dtype == np.float32
    np.testing.assert_array_equal(images, same)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kind", [str, pathlib.Path])
def test_a_model_may_be_a_path(kind, tmp_path, capsys):
    tiny_models.conv_bn_relu().save(tmp_path / "model.keras")
    with pytest.warns(UserWarning, match="did not converge"):
        images = dgh_tf.generate_images(kind(tmp_path / "model.keras"), **SMALL)
    assert images.shape == (3, 16, 16, 3)
    shown = capsys.readouterr().out
    first, bar = shown.split("\n", 1)  # a word before the bar, which begins with the first step
    assert first == "3 images: finding the input range, tracing"
    assert "2/2" in bar and "statistics gap" in bar  # Keras' progress bar


@pytest.mark.parametrize("model", [DEMO, "demo"])
def test_a_name_stands_for_a_model_of_the_package(model):
    assert dgh_tf.find_input_range(model)[0].high == (1.0,)


def test_wrong_arguments_are_one_clear_error():
    model = tiny_models.conv_bn_relu()
    for wrong, error, words in (
        ({"config": {"steps": 3}}, TypeError, "config: expected a GenerationConfig, got dict"),
        ({"config": GenerationConfig(), "steps": 3}, TypeError, "Both config and steps"),
        ({"step": 3}, TypeError, "step: no such setting.*steps"),
        ({"verbose": 7}, ValueError, "verbose=7"),
    ):
        with pytest.raises(error, match=words):
            dgh_tf.generate_images(model, **wrong)
    for function in (dgh_tf.generate_images, dgh_tf.find_input_range):
        with pytest.raises(TypeError, match="model: expected a Keras model.*got int"):
            function(5)
        with pytest.raises(FileNotFoundError, match="nothing.keras"):
            function(pathlib.Path("nothing.keras"))
    with pytest.raises(ValueError, match="image_size=64,64") as caught:
        dgh_tf.generate_images(model, image_size=(64, 64))
    assert "--" not in str(caught.value)
