"""What POSIX and Linux alone have, taken away one by one: the same results, without it."""

import ast
import os
import pathlib
import signal
import sys
import types

import numpy as np
import pytest
import tiny_models

from dgh_tf.common import console, files, machine, processes
from dgh_tf.generation import store

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def absent(monkeypatch):
    """Makes the import of a module fail, as where it does not exist."""
    return lambda name: monkeypatch.setitem(sys.modules, name, None)


def test_files_are_written_without_fcntl(tmp_path, absent):
    absent("fcntl")
    files.atomic_write(tmp_path / "a", b"new")
    (tmp_path / ".a.12345678").write_bytes(b"of another process, which may be writing it")
    files.remove_left(tmp_path / "a")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".a.12345678", "a"]
    assert (tmp_path / "a").read_bytes() == b"new"


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc which files are open")
@pytest.mark.parametrize("windows", [True, False])
def test_windows_renames_no_file_that_is_open(tmp_path, monkeypatch, windows):
    open_ones, replace = [], os.replace

    def noted(source, target):
        held = [os.path.realpath(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")]
        open_ones.append(str(source) in held)
        replace(source, target)

    monkeypatch.setattr(files, "_WINDOWS", windows)
    monkeypatch.setattr(os, "replace", noted)
    files.atomic_write(tmp_path / "a", b"new")
    with pytest.raises(KeyboardInterrupt), files.atomic_path(tmp_path / "b"):
        raise KeyboardInterrupt
    assert open_ones == [not windows]  # elsewhere a lock shows that it is still written
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_store_is_laid_out_without_posix_fallocate(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    with store._laid_out(tmp_path / "records", 12345) as file:
        file.seek(12340)
        file.write(b"12345")
    assert (tmp_path / "records").stat().st_size == 12345


def test_a_child_ends_without_process_groups(monkeypatch):
    monkeypatch.delattr(os, "killpg", raising=False)
    child = processes.start("http.server", "0", reads_input=False)
    assert processes.end(child) != 0 and child.poll() is not None


def test_scratch_folders_need_no_user_number(monkeypatch):
    monkeypatch.delattr(os, "getuid", raising=False)
    with processes.temporary_folder() as folder:
        assert folder.is_dir()


def test_terminations_are_caught_where_there_is_no_hangup(monkeypatch):
    caught = []
    monkeypatch.delattr(signal, "SIGHUP", raising=False)
    monkeypatch.setattr(signal, "signal", lambda number, _: caught.append(number))
    console.catch_terminations()
    assert caught == [signal.SIGTERM]


def test_the_machine_is_told_without_proc(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_INFO", tmp_path / "none")
    assert machine.processor() and machine.describe().endswith(f"{os.cpu_count()} logical CPUs")


@pytest.mark.parametrize("given", [None, "resource"])
def test_peak_memory_is_told_where_the_system_tells(monkeypatch, given):
    """At least what an array of ones takes, 80 MB, in bytes on every system."""
    if given:
        monkeypatch.setitem(sys.modules, given, None)
        assert machine.peak_memory() is None
    else:
        assert np.ones(10**7).nbytes < machine.peak_memory() < 2**44


@pytest.mark.parametrize("module", ["resource", "fcntl", "termios", "pwd", "grp"])
def test_no_module_needs_what_windows_lacks(module):
    """None is imported at the top of a file, so that every file can be imported."""
    tops = [
        (path.name, node)
        for package in ("dgh_tf", "tflite_export", "benchmarks")
        for path in sorted((ROOT / package).rglob("*.py"))
        for node in ast.parse(path.read_text()).body
    ]
    names = {
        (file, name)
        for file, node in tops
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in [getattr(node, "module", None), *(each.name for each in node.names)]
    }
    assert len(names) > 500 and not [each for each in names if each[1] == module]


@pytest.mark.slow
def test_a_conversion_needs_no_fork(monkeypatch):
    """Each conversion is a process of its own there, and gives the same bytes."""
    from tflite_export import to_tflite
    from tflite_export.conversion import server

    model, images = tiny_models.softmax_head(), tiny_models.images(8)
    warm = to_tflite(model, images)
    monkeypatch.delattr(os, "fork")
    monkeypatch.setattr(server, "sys", types.SimpleNamespace(platform="darwin"))
    monkeypatch.setattr(server, "_ready", None)
    assert to_tflite(model, images) == warm
