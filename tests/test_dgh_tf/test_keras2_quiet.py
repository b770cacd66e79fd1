"""What loading a Keras 2 file leaves on the terminal."""

import subprocess
import sys


def test_loading_a_keras2_file_says_nothing_of_metrics_or_of_installed_packages(tmp_path):
    """A process of its own: warnings of installed packages come once in each."""
    import tf_keras

    path = tmp_path / "m.h5"
    layers = [tf_keras.layers.Input((4,)), tf_keras.layers.Dense(2)]
    tf_keras.Sequential(layers).save(path, include_optimizer=False)
    load = f"import dgh_tf; dgh_tf.load_model({str(path)!r})"
    done = subprocess.run([sys.executable, "-c", load], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for noise in ("compiled metrics", "site-packages", "Warning"):
        assert noise not in done.stderr, done.stderr
