"""dgh_tf.load_model on random changes of model files: each gives a model or one clear error, and
touches nothing. Minutes long, so only with -m slow.
"""

from __future__ import annotations

import contextlib
import copy
import pathlib
import random
import shutil
import sys
from collections.abc import Iterator

import hostile_models as hostile
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dgh_tf.models.loading import load_model

pytestmark = pytest.mark.slow
# what Python tells of before it happens; marshal is how a Lambda becomes code
FORBIDDEN = {"os.system", "subprocess.Popen", "os.exec", "marshal.loads", "socket.connect"}
WATCH: dict[str, list] = {}


def _audit(event: str, arguments: tuple, watch: dict[str, list] = WATCH) -> None:
    # `watch` is bound here: as the process ends, the module loses its names before its hooks
    seen = watch.get("seen")
    if seen is None:
        return
    imported_stranger = event == "import" and str(arguments[0]) == hostile.MODULE
    read_secret = event == "open" and hostile.SECRET in str(arguments[0])
    if event in FORBIDDEN - {"marshal.loads"} or imported_stranger or read_secret:
        seen.append((event, str(arguments)[:200]))
    if event == "marshal.loads":  # importing a module from its .pyc does that too
        frame = sys._getframe(1)
        if "importlib" not in frame.f_code.co_filename:
            seen.append((event, frame.f_code.co_filename))


sys.addaudithook(_audit)


@contextlib.contextmanager
def watched() -> Iterator[list]:
    WATCH["seen"] = []
    try:
        yield WATCH["seen"]
    finally:
        WATCH.pop("seen")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz")
    hostile.prepare(path)
    sys.path.insert(0, str(path))
    yield path
    sys.path.remove(str(path))


def pool(trace: str) -> list:
    """Values that replace or join parts of a config: hostile layers and their parts, and plain
    nonsense.
    """
    layers = list(hostile.added(trace).values())
    kinds = sorted({str(layer["class_name"]) for layer in layers})
    names = ["Dense", "Functional", "Sequential", "Lambda", "__tensor__", "__tuple__", "function"]
    modules = ["os", "builtins", "keras", "keras.layers", "keras.src.ops.core", hostile.MODULE]
    functions = ["io.write_file", "io.gfile.remove", "relu", "system", "keras_cv>load", "tile"]
    numbers = [0, -1, 1, 10**6, 10**10, 1e400, 0.5, True, None]
    nonsense = ["", "/etc/hostname", "\x1b[31m", "a/../b", [], {}, [[]], [None, None]]
    return [*layers, *kinds, *names, *modules, *functions, *numbers, *nonsense]


def places(item, path=()) -> list[tuple]:
    """Where a config can be changed: the path of every value in it."""
    found = [path] if path else []
    if isinstance(item, dict | list):
        for key in list(item) if isinstance(item, dict) else range(len(item)):
            found += places(item[key], (*path, key))
    return found


def change(config: dict, rng: random.Random, values: list) -> None:
    """One to four changes in place: a value replaced, a key added, a layer joined or left out."""
    for _ in range(rng.randint(1, 4)):
        path = rng.choice(places(config))
        parent = config
        for key in path[:-1]:
            parent = parent[key]
        value = copy.deepcopy(rng.choice(values))
        action = rng.random()
        if action < 0.6:
            parent[path[-1]] = value
        elif action < 0.75:
            del parent[path[-1]]
        elif isinstance(parent, list):
            parent.insert(rng.randint(0, len(parent)), value)
        else:
            key = rng.choice(["module", "registered_name", "class_name", "config", "function"])
            parent[key] = value


@pytest.mark.parametrize("source", ["two.h5", "two.keras", "two", "three.keras", "three.h5"])
@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(seed=st.integers(0, 2**32 - 1))
def test_changed_configs_give_a_model_or_one_error(folder, source, seed):
    target = folder / f"changed_{source}"
    if target.exists():
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    rng, values = random.Random(seed), pool(str(folder / hostile.TRACE))
    hostile.edited(folder / source, target, lambda config: change(config, rng, values))
    require_model_or_error(folder, target)


def require_model_or_error(folder: pathlib.Path, path: pathlib.Path) -> None:
    before = set(folder.iterdir())
    with watched() as seen:
        try:
            model = load_model(str(path))
        except ValueError as error:
            text = str(error)
            assert str(path) in text and text.isprintable() and len(text) < 1500
        else:
            assert model.inputs
    assert not seen
    assert set(folder.iterdir()) == before and hostile.MODULE not in sys.modules


@pytest.mark.parametrize("source", ["two.h5", "two.keras", "three.keras", "three.h5"])
@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(seed=st.integers(0, 2**32 - 1))
def test_damaged_bytes_give_a_model_or_one_error(folder, source, seed):
    rng = random.Random(seed)
    data = bytearray((folder / source).read_bytes())
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    target = folder / f"damaged_{source}"
    target.write_bytes(data[: rng.choice([len(data), rng.randrange(len(data))])])
    require_model_or_error(folder, target)


def test_the_watch_sees_what_it_watches_for(folder):
    with watched() as seen:
        import subprocess

        subprocess.run(["true"], check=True)
        (folder / hostile.SECRET).read_bytes()
    assert {event for event, _ in seen} == {"subprocess.Popen", "open"}
