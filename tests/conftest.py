"""Shared by all tests: two logical CPUs before TensorFlow starts, and the folder of real models where it exists."""
import os
import pathlib
import signal

import pytest

# a run in the background of a script ignores Ctrl-C, and so would every process that the tests start and interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "Agg")


def pytest_configure():
    import tensorflow as tf

    cpus = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpus[0], [tf.config.LogicalDeviceConfiguration()] * 2)


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """Real models and images to measure with; DGH_SHARED_DATA or ../shared/data beside the repository."""
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
