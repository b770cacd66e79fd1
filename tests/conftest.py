"""Shared by all tests: two logical CPUs before TensorFlow starts, and the folder of real models
where it exists.
"""

import os
import pathlib
import signal

import commands  # noqa: F401  before any command: it notes which flags the console has
import pytest

# a run in the background of a script ignores Ctrl-C, and so would every process that the tests
# start and interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):  # and one under nohup would be deaf to a terminal that closes
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "Agg")


def pytest_configure():
    import tensorflow as tf

    cpus = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(
        cpus[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With `-n 2`, the tests of one group run in one process."""
    from xdist.scheduler import LoadGroupScheduling

    return LoadGroupScheduling(config, log)


def pytest_collection_modifyitems(items):
    """A file's tests share fixtures, and those of hostile inputs are counted together."""
    for item in items:
        name = item.path.stem
        group = "hostile" if name.startswith("test_hostile") else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """Real models and images to measure with; DGH_SHARED_DATA or ../shared/data beside the
    repository.
    """
    default = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = pathlib.Path(os.environ.get("DGH_SHARED_DATA", default))
    if not (folder / "README.md").exists():
        pytest.skip(f"no real models at {folder} (set DGH_SHARED_DATA)")
    return folder


@pytest.fixture(params=["one_device", "mirrored"])
def strategy(request):
    """Every loop test runs on one device and on two replicas."""
    import tensorflow as tf

    if request.param == "one_device":
        return tf.distribute.OneDeviceStrategy("CPU:0")
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a small good model (8x8x3) and good data: good.keras, good.npy, good.npz."""
    import hostile_files
    import keras
    import numpy as np
    import tiny_models

    folder = tmp_path_factory.mktemp("hostile")
    inputs = keras.Input((8, 8, 3), name="image")
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3)(inputs)))
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x)))
    tiny_models.settle(model).save(folder / "good.keras")
    np.save(folder / "good.npy", hostile_files.GOOD)
    np.savez(folder / "good.npz", x=hostile_files.GOOD, y=np.arange(4) % 3)
    (folder / "trap").mkdir()
    return folder


@pytest.fixture(scope="module")
def bad_models(work):
    """{what is wrong: bytes of a .keras file}."""
    import hostile_files

    return hostile_files.models((work / "good.keras").read_bytes(), b"\x1c\0\0\0TFL3" + bytes(64))
