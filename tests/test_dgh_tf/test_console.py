"""Commands print nothing of TensorFlow's own, start fast, and lose no message of a failure. Each in
a real process.
"""

import os
import signal
import subprocess
import sys
import time

import commands
import numpy as np
import pytest


def python(*arguments):
    environment = {
        name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"
    }
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=120
    )


def test_importing_tensorflow_prints_nothing_and_stderr_works_after_it():
    done = python(
        "-c",
        "import os; from dgh_tf.common.quiet import quiet_tensorflow; quiet_tensorflow(); "
        "quiet_tensorflow(); "
        "import keras, tensorflow; tensorflow.constant(1); os.write(2, b'after')",
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "after")


def test_held_lines_are_shown_when_the_block_fails_but_not_after_an_interrupt():
    # os.write goes past Python's sys.stderr, as C++ code does
    done = python(
        "-c",
        "import os; from dgh_tf.common.quiet import held_stderr\n"
        "with held_stderr(): os.write(2, b'lost ')\n"
        "try:\n"
        "    with held_stderr(): os.write(2, b'lost '); raise KeyboardInterrupt\n"
        "except KeyboardInterrupt: pass\n"
        "with held_stderr(): os.write(2, b'kept '); raise OSError('broken')",
    )
    assert done.returncode == 1
    assert (
        done.stderr.startswith("kept Traceback")
        and "OSError: broken" in done.stderr
        and "lost" not in done.stderr
    )


def test_an_interrupt_inside_an_exec_of_text_ends_with_the_exit_code_too(tmp_path, monkeypatch):
    """CPython would end the process by the signal, although it was caught: namedtuple, dataclass
    and others execute text.
    """
    (tmp_path / "program.py").write_text(
        "from dgh_tf.common import console\n"
        "console.run(lambda argv: exec('raise KeyboardInterrupt'))\n"
    )
    monkeypatch.chdir(tmp_path)
    done = python("-m", "program")
    assert (done.returncode, done.stderr) == (
        130,
        "stopped: interrupted; nothing half-written was left behind.\n",
    )


@pytest.mark.parametrize(
    "command", ["dgh_tf.generate", "tflite_export.convert", "benchmarks.calibration"]
)
def test_help_needs_no_tensorflow(command):
    start = time.monotonic()
    done = python("-X", "importtime", "-m", command, "--help")
    seconds = time.monotonic() - start
    modules = {
        line.rsplit("|", 1)[-1].strip()
        for line in done.stderr.splitlines()
        if line.startswith("import time:")
    }
    assert command in done.stdout.split("\n\n")[0] and "--output" in done.stdout
    assert "absl.app" in modules  # the list is read right
    assert not modules & {"tensorflow", "keras", "matplotlib", "sklearn", "keras_cv"}
    assert seconds < 6


@pytest.mark.parametrize(
    ("command", "module"),
    [
        ("dgh_tf.generate", "dgh_tf.generate"),
        ("dgh_tf.generate", "absl"),
        ("dgh_tf.report", "dgh_tf.common.console"),
        ("tflite_export.convert", "absl.flags"),
        ("benchmarks.calibration", "dgh_tf.common.files"),
        ("benchmarks.suite", "tempfile"),
    ],
)
def test_ctrl_c_during_the_first_imports_is_one_line(command, module, tmp_path, monkeypatch):
    """The process gets a SIGINT when it looks for the module: whatever the machine's speed, always
    at that moment.
    """
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(name, path=None, target=None):\n"
        f"        if name == {module!r}: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder)\n"
    )
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    )
    done = python("-m", command)
    assert (done.returncode, done.stdout, done.stderr) == (
        -signal.SIGINT,
        "",
        "stopped: interrupted before anything was done.\n",
    )


def test_ctrl_c_in_a_callback_is_not_lost(tmp_path, monkeypatch):
    """Python drops what a weak reference's callback raises, and imports have such callbacks: the
    command would run to its end.
    """
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys, weakref\n"
        "class Object: pass\n"
        "class Finder:\n"
        "    def find_spec(name, path=None, target=None):\n"
        "        if name == 'tflite_export.calibration.load':\n"
        "            weak = weakref.ref(Object(), lambda _: os.kill(os.getpid(), signal.SIGINT))\n"
        "sys.meta_path.insert(0, Finder)\n"
    )
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    )
    np.save(
        tmp_path / "c.npy", np.zeros((4, 5, 5, 1), np.float32)
    )  # refused for its shape, seconds later
    done = python(
        "-m",
        "tflite_export.convert",
        "--model=demo",
        f"--calibration={tmp_path}/c.npy",
        f"--output={tmp_path}/demo.tflite",
    )
    assert done.stdout in ("", "loading demo\n")
    assert (done.stderr.count("\n"), done.stderr[:8]) == (1, "stopped:"), done.stderr
    assert done.returncode in (130, -signal.SIGINT)


def test_a_signal_that_compiled_code_loses_still_ends_in_one_line():
    """A SystemError stands for what TensorFlow's tracing once made of a SIGTERM."""
    done = python(
        "-c",
        "import os, signal\n"
        "from dgh_tf.common import console\n"
        "def main(argv):\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    except KeyboardInterrupt:\n"
        "        raise SystemError('bad argument to internal function') from None\n"
        "console.run(main)",
    )
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stderr.splitlines() == [
        "stopped: by SIGTERM; nothing half-written was left behind."
    ]


def test_a_closed_pipe_ends_a_command_quietly(tmp_path):
    """As `| head -n 1` does: the code is SIGPIPE's, also where an algorithm that fails would have
    been replaced, and what was being written is gone.
    """
    program = f"""
import sys
from dgh_tf.common import console
from dgh_tf.common.files import atomic_path
def main(argv):
    console.say("one")
    sys.stdin.read()
    with atomic_path({str(tmp_path / "F.tflite")!r}) as path:
        path.write_bytes(b"half")
        try:
            console.say("two")
        except Exception:
            console.say("fallback")
console.run(main)
"""
    running = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert running.stdout.readline() == b"one\n"
    running.stdout.close()
    running.stdin.close()
    assert (running.wait(timeout=60), running.stderr.read()) == (128 + signal.SIGPIPE, b"")
    running.stderr.close()
    assert list(tmp_path.iterdir()) == []


def test_help_that_nobody_reads_ends_as_quietly():
    program = "from dgh_tf.common import console\nconsole.run(print)"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", program, "--help"], stdout=write, stderr=subprocess.PIPE, timeout=60
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a device that is full")
UNHEARD = (
    "error: standard output takes no more (No space left on device). Give it another place, such "
    "as a file on a disk with room; the same command goes on with what is whole.\n"
)


@FULL
@pytest.mark.parametrize("flag", ["--help", "--version", "--noverbose"])
def test_a_full_output_is_one_line_and_no_success(flag, tmp_path):
    """Also where an algorithm that fails would have been replaced."""
    program = f"""
from dgh_tf.common import console
from dgh_tf.common.files import atomic_path
def main(argv):
    with atomic_path({str(tmp_path / "F.tflite")!r}) as path:
        path.write_bytes(b"half")
        try:
            console.say("one")
        except Exception:
            console.say("fallback")
console.run(main)
"""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", program, flag], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (1, UNHEARD)
    assert list(tmp_path.iterdir()) == []


@FULL
@pytest.mark.parametrize(("error", "code"), [("ValueError", 1), ("KeyboardInterrupt", 130)])
def test_the_exit_code_stays_where_no_error_can_be_written(error, code):
    program = f"""
from dgh_tf.common import console
def main(argv):
    raise {error}("no")
console.run(main)
"""
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", program], stdout=full, stderr=full)
    assert done.returncode == code


def test_those_who_import_the_packages_keep_their_own_tracebacks():
    done = python(
        "-c",
        "import sys, dgh_tf.generate, tflite_export.convert; print(sys.excepthook is "
        "sys.__excepthook__)",
    )
    assert done.stdout == "True\n", done.stderr


def test_errors_are_one_line_and_verbose_shows_where():
    arguments = ["-m", "dgh_tf.generate", "--model=absent.keras", "--output_dir=never"]
    done = python(*arguments)
    assert (
        done.returncode == 1
        and done.stderr.startswith("error: No model at 'absent.keras'.")
        and done.stderr.count("\n") == 1
    )
    assert "Traceback" in commands.call(*arguments[1:], "--verbose")[2]
    assert not os.path.exists("never")


def test_control_characters_of_a_path_do_not_reach_the_terminal():
    """A name can clear the screen, change the title or turn the reading direction."""
    name = "a\x1b[2J\x07\u202e\x9b.keras"
    done = python("-m", "dgh_tf.generate", f"--model={name}", "--output_dir=never")
    assert done.returncode == 1 and done.stderr.startswith("error: No model at")
    assert done.stderr.count("\n") == 1
    assert not set(done.stderr) & set("\x1b\x07\u202e\x9b"), done.stderr
    assert r"a\x1b[2J\x07\u202e\x9b.keras" in done.stderr


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&- >&- 2>&-"])
def test_closed_streams_change_nothing(closed, tmp_path):
    """The next file opened takes the number of a closed stream, and what is printed goes there."""
    (tmp_path / "program.py").write_text(
        "import os, sys\nfrom dgh_tf.common import console\nfrom dgh_tf.common.quiet import "
        "held_stderr\ndef main(argv):\n"
        "    with open('data', 'w') as file:\n"
        "        console.say('said'); os.write(2, b'native')\n"
        "        with held_stderr(): print('held', file=sys.stderr)\n"
        "    open('ended', 'w').close()\n"
        "console.run(main)\n"
    )
    done = subprocess.run(
        ["sh", "-c", f"exec {sys.executable} program.py {closed}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        timeout=60,
    )
    assert done.returncode == 0 and (tmp_path / "ended").exists()
    assert (tmp_path / "data").read_bytes() == b""


def test_memory_that_tensorflow_lacks_is_one_line():
    code = (
        "import tensorflow as tf\nfrom dgh_tf.common import console\n"
        "console.run(lambda argv: tf.zeros([2**20, 2**20, 2**8]) and 0)"
    )
    done = python("-c", code)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and last.startswith("error: not enough memory"), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("flag", ["--num_images=0", "--input_range=2,1", "--flip=no"])
def test_settings_in_errors_are_flags_in_a_command(flag):
    """Functions write name=value, as one gives it in Python."""
    code, _, err = commands.call("dgh_tf.generate", "--output_dir=never", "--steps=1", flag)
    assert code == 1 and err.startswith(f"error: {flag}: expected")


@pytest.mark.parametrize("command", ["dgh_tf.generate", "tflite_export.convert"])
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_shows_an_example_and_every_flag_in_a_group(command, flag):
    done = python("-m", command, flag)
    assert done.returncode == 0, done.stderr
    assert f"Example: python -m {command} --model=" in done.stdout
    assert "--flagfile=FILE" in done.stdout
    places = [done.stdout.index(f"\n{word}:\n") for word in ("Model", "Output", "Images")]
    assert places == sorted(places)
    assert done.stdout.index("  --model\n") < places[1] < done.stdout.index("  --num_images\n")


def test_version_is_told_without_other_flags():
    import dgh_tf

    done = python("-m", "tflite_export.convert", "--version")
    assert (done.returncode, done.stdout) == (0, f"dgh-tf {dgh_tf.__version__}\n")


LAYER = """
import keras

@keras.saving.register_keras_serializable(package="mine")
class Doubled(keras.layers.Layer):
    def call(self, x):
        return 2.0 * x
"""


@pytest.fixture(scope="module")
def custom(tmp_path_factory):
    """(folder, model file): a model with a layer that layer_of_mine.py alone knows."""
    folder = tmp_path_factory.mktemp("custom")
    (folder / "layer_of_mine.py").write_text(LAYER)
    build = (
        "import keras, layer_of_mine; x = keras.Input((8, 8, 3)); "
        "y = keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3)(x)); "
        "y = layer_of_mine.Doubled()(y); y = keras.layers.GlobalAveragePooling2D()(y); "
        "keras.Model(x, keras.layers.Dense(3)(y)).save('m.keras')"
    )
    done = subprocess.run([sys.executable, "-c", build], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, folder / "m.keras"


@pytest.mark.parametrize("form", ["layer_of_mine.py", "layer_of_mine"])
def test_import_brings_custom_layers(custom, form, monkeypatch):
    from dgh_tf import load_model
    from dgh_tf.common.user_code import import_user_code

    folder, model = custom
    with pytest.raises(ValueError, match="Doubled"):
        load_model(model)
    monkeypatch.chdir(folder)
    try:
        import_user_code([form])
        x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
        loaded = load_model(model)
        inner = loaded.layers[-3]
        assert type(inner).__name__ == "Doubled"
        np.testing.assert_allclose(inner(x), 2.0 * x, rtol=1e-6)
    finally:
        import keras

        sys.modules.pop("layer_of_mine", None)
        keras.saving.get_custom_objects().pop("mine>Doubled", None)


def test_import_refuses_what_is_not_there_and_what_fails(tmp_path):
    from dgh_tf.common.user_code import import_user_code

    with pytest.raises(FileNotFoundError, match=r"import=none_such\.py: no such file"):
        import_user_code(["none_such.py"])
    with pytest.raises(ValueError, match="import=none_such: no such module"):
        import_user_code(["none_such"])
    bad = tmp_path / "bad_of_mine.py"
    bad.write_text("1 / 0\n")
    with pytest.raises(ValueError, match="ended in ZeroDivisionError"):
        import_user_code([str(bad)])
    assert "bad_of_mine" not in sys.modules
    taken = tmp_path / "json.py"
    taken.write_text("")
    with pytest.raises(ValueError, match="loaded already"):
        import_user_code([str(taken)])


def test_the_command_takes_import(custom):
    folder, _ = custom
    done = python(
        "-m", "dgh_tf.generate", "--model=demo", "--output_dir", str(folder / "run"),
        "--import", str(folder / "none_such.py"),
    )  # fmt: skip
    assert done.returncode == 1 and "--import=" in done.stderr and "no such file" in done.stderr


def test_a_quick_import_goes_without_packages_that_are_there_afterwards(tmp_path):
    """Keras takes what is refused for not installed; the garbage collector works again after it."""
    (tmp_path / "needed.py").write_text("")
    (tmp_path / "spare.py").write_text("")
    (tmp_path / "large.py").write_text(
        "import gc, needed\nassert not gc.isenabled()\n"
        "try:\n    import spare\nexcept ImportError:\n    spare = None\n"
    )
    (tmp_path / "program.py").write_text(
        "import gc\nfrom dgh_tf.common.quick_import import quick_import\n"
        "with quick_import(unused=['spare']):\n    import large\n"
        "assert large.spare is None and large.needed\n"
        "assert gc.isenabled() and gc.get_freeze_count() > 1000\n"
        "import spare\n"
        "try:\n    with quick_import(): raise OSError\nexcept OSError: import sys\n"
        "assert gc.isenabled() and not any('quick' in str(type(f)) for f in sys.meta_path)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{os.getcwd()}{os.pathsep}{tmp_path}"}
    done = subprocess.run(
        [sys.executable, tmp_path / "program.py"], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_command_starts_tensorflow_without_what_keras_can_do_without():
    done = python(
        "-c",
        "import sys; from dgh_tf.common.quiet import quiet_tensorflow; quiet_tensorflow(); "
        "import keras; print([n for n in ('sklearn', 'matplotlib.pyplot') if n in sys.modules]); "
        "from matplotlib import pyplot; print(keras.layers.Dense(1).name)",
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\ndense\n", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "dgh_tf.generate --output_dir={0}/a",
        "tflite_export.convert --output={0}/a.tflite",
        "benchmarks.calibration --output_dir={0}/a",
        "benchmarks.convergence --output_dir={0}/a",
        "benchmarks.layers --calibrations={0}/x.npy",
        "benchmarks.lowbit --real=demo --evaluation=demo --output_dir={0}/a",
        "benchmarks.structure --output_dir={0}/a",
        "benchmarks.privacy --output_dir={0}/a",
        "benchmarks.speed --output={0}/a.json",
    ],
)
def test_every_command_speaks_before_it_starts_tensorflow(tmp_path, command):
    """Which takes seconds: here it cannot be had at all, and the command has spoken by then."""
    np.save(tmp_path / "x.npy", np.zeros((4, 64, 64, 3), np.float32))
    module, *options = command.format(tmp_path).split()
    script = (
        "import runpy, sys\n"
        "sys.modules['tensorflow'] = sys.modules['keras'] = None\n"
        f"sys.argv = {[module, '--model=demo', *options]}\n"
        f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.startswith("loading demo\n"), done.stderr
    assert done.returncode != 0
