"""Child processes end with their parent, however that ends, and the next process clears the
temporary folders of those that were killed. Real processes and real signals.
"""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from dgh_tf.common import processes

ROOT = pathlib.Path(__file__).resolve().parents[2]
# a child that starts a grandchild, tells both numbers and a folder's name, and waits
MODULE = """import subprocess, sys, time
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(grandchild.pid, flush=True)
time.sleep(600)
"""
PARENT = """import subprocess, sys, threading, time
from dgh_tf.common import console, processes
def main(argv):
    with processes.temporary_folder() as folder:
        (folder / "large.npy").write_bytes(bytes(1000))
        processes.run("waits", on_line=lambda line: print(line, folder, flush=True))
if THREAD:
    thread = threading.Thread(target=main, args=[[]])
    thread.start()
    thread.join()
console.run(main)
"""


def alive(pid):
    """Whether the process is there and no zombie."""
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_text()
        return text.rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(pid, *, seconds=10):
    limit = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < limit:
        time.sleep(0.02)
    return not alive(pid)


@pytest.fixture
def parent(tmp_path):
    """Starts a parent in a TMPDIR of its own; gives (process, its grandchild, temporary folder)."""
    (tmp_path / "waits.py").write_text(MODULE)
    (tmp_path / "tmp").mkdir()
    started = []

    def start(*, thread=False):
        process = subprocess.Popen(
            [sys.executable, "-c", PARENT.replace("THREAD", str(thread))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]),
                "TMPDIR": str(tmp_path / "tmp"),
            },
        )
        started.append(process)
        pid, folder = process.stdout.readline().split()
        assert (pathlib.Path(folder) / "large.npy").stat().st_size == 1000 and alive(pid)
        return process, int(pid), pathlib.Path(folder)

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
@pytest.mark.parametrize("thread", [False, True])
def test_children_of_a_killed_process_end_and_the_next_clears_its_folder(parent, thread):
    first, grandchild, left = parent(thread=thread)
    other, others, kept = parent()
    first.kill()
    first.wait()
    assert gone(grandchild) and left.exists()
    third, thirds, _ = parent()  # makes a temporary folder, and first clears what is dead
    assert not left.exists() and not left.with_suffix(".lock").exists()
    assert kept.exists() and alive(others) and other.poll() is None and alive(thirds)


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_is_one_line_and_leaves_nothing(parent, number):
    process, grandchild, folder = parent()
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert err.startswith("stopped: ") and err.count("\n") == 1, err
    assert gone(grandchild) and not list(folder.parent.iterdir())


def test_time_and_exit_code_of_a_child(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "waits.py").write_text(MODULE)
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="waits took more than 0.5 s"):
        processes.run("waits", timeout=0.5)
    assert time.monotonic() - began < 20
    (tmp_path / "talks.py").write_text(
        "import os, sys\nprint('one', sys.argv[1:]); print('two')\n"
        "os.write(2, b'three')\nsys.exit(7)\n"
    )
    lines = []
    done = processes.run("talks", "a b", on_line=lines.append)
    assert (done.code, done.stdout, done.stderr) == (7, "one ['a b']\ntwo\n", "three")
    assert lines == ["one ['a b']", "two"]
    (tmp_path / "dies.py").write_text("import os\nos.kill(os.getpid(), 9)\n")
    assert processes.run("dies").code == -9


def test_a_module_in_the_current_folder_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "json.py").write_text("print('taken over')")
    assert processes.run("json.tool", "--help").stdout.startswith("usage")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
@pytest.mark.parametrize("closed", ["", "<&-", ">&-", "2>&-", "<&- 2>&-", "<&- >&- 2>&-"])
def test_a_fork_has_its_own_files_whichever_its_parent_has_closed(closed, tmp_path):
    """The pipes and the file for its errors may then have the numbers of those closed."""
    code = """import os, pathlib, sys, tempfile
from dgh_tf.common import processes
def serve():
    os.write(1, os.read(0, 5).upper())
    raise ValueError("told")
with tempfile.TemporaryFile() as errors:
    child = processes.fork(serve, stderr=errors)
    child.stdin.write(b"hello")
    answer, code = child.stdout.read(9), child.wait()
    told = os.pread(errors.fileno(), 4096, 0)
    pathlib.Path(sys.argv[1]).write_bytes(b"%s %d %s" % (answer, code, told))"""
    found = tmp_path / "found"
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", code, str(found)]
    subprocess.run(command, check=True)
    assert found.read_text().startswith("HELLO 1 Traceback")
    assert found.read_text().endswith("ValueError: told\n")
