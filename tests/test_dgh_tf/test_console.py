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
    assert f"{command.replace('.', '/')}.py:" in done.stdout and "--output" in done.stdout
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
