"""Model files that try to run code, import a module, read another file or fill the memory.

Each maker takes a folder and returns the path of the file it wrote there. Code that runs makes
TRACE in that folder; SECRET there is the file that nobody may read.
"""

from __future__ import annotations

import base64
import json
import marshal
import pathlib
import re
import shutil
import zipfile
from collections.abc import Callable

import h5py
import numpy as np
import tiny_models as tiny

TRACE, SECRET, MODULE = "trace", "secret", "stranger_module"
KERAS2_LAYERS = "tf_keras.src.layers.core"


def prepare(folder: pathlib.Path) -> None:
    """Sound models to start from, the secret, and a module that leaves a trace when imported."""
    import tf_keras

    model = tiny.conv_bn_relu(keras=tf_keras)
    model.save(folder / "two.h5")
    model.save(folder / "two.keras")
    model.save(folder / "two", save_format="tf")
    three = tiny.conv_bn_relu()
    three.save(folder / "three.keras")
    three.save(folder / "three.h5")
    (folder / SECRET).write_bytes(np.linspace(1.0, 2.0, 4096, dtype=np.float32).tobytes())
    (folder / f"{MODULE}.py").write_text(
        f"import pathlib\npathlib.Path({str(folder / TRACE)!r}).touch()\nclass X: pass\n"
        "def f(x): return x\n"
    )


def edited(source: pathlib.Path, target: pathlib.Path, change: Callable[[dict], None]):
    """A copy of a .h5, .keras or SavedModel whose config `change` has altered in place."""
    if source.is_dir():
        from tf_keras.protobuf import saved_metadata_pb2

        shutil.copytree(source, target)
        metadata = saved_metadata_pb2.SavedMetadata()
        metadata.ParseFromString((target / "keras_metadata.pb").read_bytes())
        root = json.loads(metadata.nodes[0].metadata)
        change(root)
        metadata.nodes[0].metadata = json.dumps(root)
        (target / "keras_metadata.pb").write_bytes(metadata.SerializeToString())
    elif source.suffix == ".h5":
        shutil.copy(source, target)
        with h5py.File(target, "r+") as file:
            config = json.loads(file.attrs["model_config"])
            change(config)
            file.attrs["model_config"] = json.dumps(config)
    else:
        with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
            for name in old.namelist():
                data = old.read(name)
                if name == "config.json":
                    config = json.loads(data)
                    change(config)
                    data = json.dumps(config).encode()
                new.writestr(name, data)
    return target


def function_layer(name: str, first: list, kind: str = "TFOpLambda") -> dict:
    return {
        "class_name": kind,
        "module": f"{KERAS2_LAYERS}.tf_op_layer",
        "registered_name": kind,
        "config": {"name": "f", "trainable": True, "dtype": "float32", "function": name},
        "name": "f",
        "inbound_nodes": [first],
    }


def layer(kind: str, config: dict, **more) -> dict:
    return {
        "class_name": kind,
        "module": "keras.layers",
        "registered_name": None,
        "config": {"name": "added", **config},
        "name": "added",
        "inbound_nodes": [],
        **more,
    }


def python_lambda(trace: str) -> dict:
    code = compile(f"lambda x: open({trace!r}, 'w') and x", "f", "eval").co_consts[0]
    text = base64.b64encode(marshal.dumps(code)).decode()
    return layer(
        "Lambda",
        {
            "function": [text, None, None],
            "function_type": "lambda",
            "module": "__main__",
            "output_shape": None,
            "output_shape_type": "raw",
            "output_shape_module": None,
            "arguments": {},
        },
    )


def stranger(kind: str = "X") -> dict:
    """The config of an object that a file wants from a module of its own."""
    return {"class_name": kind, "module": MODULE, "registered_name": kind, "config": {"name": "x"}}


def added(trace: str) -> dict[str, dict]:
    """Layers that a file may bring, by what they try."""
    write = ["_CONSTANT_VALUE", -1, trace, {"contents": "x"}]
    copy = ["_CONSTANT_VALUE", -1, "/etc/hostname", {"dst": trace, "overwrite": True}]
    tile = ["_CONSTANT_VALUE", -1, [1.0, 2.0], {"multiples": [10**10]}]
    function = {"class_name": "function", "config": "f", "module": MODULE, "registered_name": "f"}
    system = {"class_name": "function", "config": "system", "module": "os"}
    dense = {"units": 3}
    nodes = [[[trace, 0, 0, {}]]]
    return {
        "function that writes": function_layer("io.write_file", write),
        "function that copies": function_layer("io.gfile.copy", copy),
        "slice that writes": function_layer("io.write_file", write, "SlicingOpLambda"),
        "class method": function_layer("io.write_file", write, "ClassMethod"),
        "instance method": function_layer("io.write_file", write, "InstanceMethod"),
        "function on a constant": function_layer("tile", tile),
        "graph node": layer("TensorFlowOpLayer", {"node_def": {"op": "WriteFile"}}),
        "lambda": python_lambda(trace),
        "lambda by another name": {
            **python_lambda(trace),
            "class_name": "Innocent",
            "module": f"{KERAS2_LAYERS}.lambda_layer",
            "registered_name": "Lambda",
        },
        "dense that is a lambda": {**python_lambda(trace), "class_name": "Dense"}
        | {"module": f"{KERAS2_LAYERS}.lambda_layer", "registered_name": "Lambda"},
        "module": {**layer("X", {}), **stranger()},
        "module of a known class": {**layer("Dense", dense), "module": MODULE},
        "module in an initializer": layer("Dense", {**dense, "kernel_initializer": stranger()}),
        "module in a regularizer": layer("Dense", {**dense, "kernel_regularizer": stranger()}),
        "module in a constraint": layer("Dense", {**dense, "bias_constraint": stranger()}),
        "module in an activation": layer("Dense", {**dense, "activation": function}),
        "system as activation": layer("Dense", {**dense, "activation": system}),
        "activation that loads": layer("Dense", {**dense, "activation": "deserialize"}),
        "module in a cell": layer("RNN", {"cell": stranger()}),
        "module in a wrapper": layer("TimeDistributed", {"layer": stranger()}),
        "lambda in a wrapper": layer("Bidirectional", {"layer": python_lambda(trace)}),
        "module in a dtype": layer("Dense", {**dense, "dtype": stranger()}),
        "module in a list": layer("Dense", {**dense, "extra": [[{"deep": stranger()}]]}),
        "lambda in a model": layer("Sequential", {"layers": [python_lambda(trace)]}),
        "module at compiling": layer(
            "Sequential", {"layers": []}, compile_config={"loss": stranger(), "optimizer": "sgd"}
        ),
        "type of a tensor": layer("Dense", {**dense, "units": {**stranger("__typespec__")}}),
        "TypeSpec": layer("Dense", {"units": {"class_name": "TypeSpec", "type_spec": "X"}}),
        "python by name": layer("Dense", {"units": {"class_name": "__lambda__", "config": {}}}),
        "vocabulary": layer("StringLookup", {"vocabulary": "/etc/hostname"}),
        "vocabulary of numbers": layer("IntegerLookup", {"vocabulary": "/etc/hostname"}),
        "vocabulary of texts": layer("TextVectorization", {"vocabulary": "/etc/hostname"}),
        "another model": layer("TFSMLayer", {"filepath": "two"}),
        "feature columns": layer("DenseFeatures", {"feature_columns": [stranger()]}),
        "pickled torch module": layer("TorchModuleWrapper", {"module": "gASV"}),
        "keras_cv loader": {**layer("Dense", dense), "registered_name": "keras_cv>load"},
        "loader as initializer": layer("Dense", {**dense, "kernel_initializer": "keras_cv>load"}),
        "loader as padding": layer("Conv1D", {"padding": "keras_cv.datasets.imagenet>load"}),
        "loss that loads": layer(
            "Dense", {**dense, "activation": {**stranger("get"), "module": "keras.losses"}}
        ),
        "wide text": layer(
            "Dense",
            {
                "units": {
                    "class_name": "__numpy__",
                    "config": {"value": ["a"], "dtype": "U99999999"},
                }
            },
        ),
        "wide table": layer("MelSpectrogram", {"fft_length": 10**6, "num_mel_bins": 10**6}),
        "class that is a list": layer("Dense", dense, class_name=["Dense"]),
        "call of nothing": layer("Dense", dense, inbound_nodes=nodes),
        "call on a constant": layer(
            "UpSampling1D",
            {"size": 10**10},
            inbound_nodes=[[["_CONSTANT_VALUE", -1, [[[1.0]]], {}]]],
        ),
    }


def gzip_bomb(folder: pathlib.Path) -> pathlib.Path:
    path = folder / "gzip.h5"
    shutil.copy(folder / "two.h5", path)
    with h5py.File(path, "r+") as file:
        file["model_weights"].create_dataset(
            "zeros", (2**29,), "f4", chunks=(2**22,), compression="gzip"
        )
        file["model_weights/zeros"][: 2**23] = 0.0
    return path


def one_text_many_times(folder: pathlib.Path) -> pathlib.Path:
    """A list of names that are all one text of a MiB, which the file holds once."""
    path, count, size = folder / "texts.h5", 3000, 2**20
    shutil.copy(folder / "two.h5", path)
    with h5py.File(path, "r+") as file:
        texts = [*map(str, range(1, count)), "x" * size]
        next(iter(file["model_weights"].values())).attrs["weight_names"] = texts
    content = path.read_bytes()
    length = size.to_bytes(4, "little")
    for match in re.finditer(re.escape(length), content):
        last = content[match.start() : match.start() + 16]  # length, place and number of the text
        first = match.start() - 16 * (count - 1)
        if content[first : first + 4] == (1).to_bytes(4, "little"):
            path.write_bytes(content[:first] + last * count + content[match.start() + 16 :])
            return path
    raise AssertionError("the list was not found in the file")


def declared_dataset(folder: pathlib.Path) -> pathlib.Path:
    path = folder / "declared.h5"
    shutil.copy(folder / "two.h5", path)
    with h5py.File(path, "r+") as file:
        file["model_weights"].create_dataset("nothing", (2**40,), "f4")
    return path


def zip_bomb(folder: pathlib.Path) -> pathlib.Path:
    path = folder / "zip.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", b"{" + b" " * 2**28 + b"}")
        archive.writestr("model.weights.h5", bytes(2**27))
    return path


def wide_layer(folder: pathlib.Path) -> pathlib.Path:
    def change(config):
        last = config["config"]["layers"][-1]
        last["config"]["units"] = 2**27

    return edited(folder / "two.h5", folder / "wide.h5", change)


def wide_layer_of_keras3(folder: pathlib.Path) -> pathlib.Path:
    def change(config):
        last = config["config"]["layers"][-1]
        last["config"]["units"] = 2**27

    return edited(folder / "three.keras", folder / "wide.keras", change)


def wide_input(folder: pathlib.Path) -> pathlib.Path:
    def change(config):
        first = config["config"]["layers"][0]
        for key in ("batch_input_shape", "batch_shape"):
            if key in first["config"]:
                first["config"][key] = [None, 2**17, 2**17, 3]

    return edited(folder / "two.h5", folder / "input.h5", change)


def deep_config(folder: pathlib.Path) -> pathlib.Path:
    def change(config):
        inner: list = []
        for _ in range(500):
            inner = [inner]
        config["config"]["deep"] = inner

    return edited(folder / "two.h5", folder / "deep.h5", change)


def too_deep_to_parse(folder: pathlib.Path) -> pathlib.Path:
    path = folder / "deeper.h5"
    shutil.copy(folder / "two.h5", path)
    with h5py.File(path, "r+") as file:
        file.attrs["model_config"] = "[" * 100_000 + "]" * 100_000
    return path


def doubling_models(folder: pathlib.Path) -> pathlib.Path:
    """Thirty models, each of which uses the next one twice: 2^30 calls."""

    def model(depth: int) -> dict:
        start = layer("InputLayer", {"batch_input_shape": [None, 4], "name": "i"}, name="i")
        inner = layer("ReLU", {"name": "m"}) if depth == 0 else model(depth - 1)
        inner |= {"name": "m", "inbound_nodes": [[["i", 0, 0, {}]], [["m", 1, 0, {}]]]}
        inner["config"]["name"] = "m"
        ends = {"input_layers": [["i", 0, 0]], "output_layers": [["m", 2, 0]]}
        return layer("Functional", {"layers": [start, inner], **ends})

    def change(config):
        config["config"] = model(30)["config"]

    return edited(folder / "two.h5", folder / "doubling.h5", change)


def text_of_many_layers(folder: pathlib.Path) -> pathlib.Path:
    def change(config):
        first = config["config"]["layers"][0]
        config["config"]["layers"] += [first] * 20_000

    return edited(folder / "two.h5", folder / "many.h5", change)


BOMBS: dict[str, Callable] = {
    maker.__name__: maker
    for maker in (
        gzip_bomb,
        one_text_many_times,
        declared_dataset,
        zip_bomb,
        wide_layer,
        wide_layer_of_keras3,
        wide_input,
        deep_config,
        too_deep_to_parse,
        doubling_models,
        text_of_many_layers,
    )
}


def links(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """HDF5 files, and archives of them, whose weights lie somewhere else."""

    def external(group, name, old):
        place = [(str(folder / SECRET), 0, old.size * 4)]
        group.create_dataset(name, old.shape, "f4", external=place)

    def virtual(group, name, old):
        layout = h5py.VirtualLayout(old.shape, "f4")
        layout[...] = h5py.VirtualSource(folder / "other.h5", "values", old.shape)
        group.create_virtual_dataset(name, layout)

    def outer_link(group, name, old):
        group[name] = h5py.ExternalLink(str(folder / "other.h5"), "values")

    def soft_link(group, name, old):
        group[name] = h5py.SoftLink("/elsewhere")

    def second_name(group, name, old):
        group[name] = next(iter(group.file["model_weights"].values()))

    made = {}
    for kind in (external, virtual, outer_link, soft_link, second_name):
        path = folder / f"{kind.__name__}.h5"
        shutil.copy(folder / "two.h5", path)
        with h5py.File(path, "r+") as file:
            name = next(n for n in datasets(file) if "kernel" in n)
            old, group = file[name], file[name].parent
            with h5py.File(folder / "other.h5", "w") as other:
                other["values"] = np.full(old.shape, 7.0, np.float32)
            del file[name]
            kind(group, name.split("/")[-1], old)
        made[kind.__name__] = path
    return made


def datasets(file: h5py.File) -> list[str]:
    found: list[str] = []
    file.visititems(lambda n, item: found.append(n) if isinstance(item, h5py.Dataset) else None)
    return found


def polyglot(folder: pathlib.Path) -> pathlib.Path:
    """HDF5 with a Lambda in front, an innocent archive behind."""
    path = folder / "both.h5"
    trace = str(folder / TRACE)
    edited(folder / "two.h5", path, lambda c: c["config"]["layers"].append(python_lambda(trace)))
    with zipfile.ZipFile(folder / "two.keras") as old, zipfile.ZipFile(path, "a") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return path


def saved_model_that_initializes(folder: pathlib.Path) -> pathlib.Path:
    """A SavedModel with a table whose initializer writes the trace."""
    import tensorflow as tf
    import tf_keras
    from tensorflow.python.ops import lookup_ops

    class Table(lookup_ops.StaticHashTable):
        def _initialize(self):
            tf.io.write_file(str(folder / TRACE), "x")
            return super()._initialize()

    model = tiny.conv_bn_relu(keras=tf_keras)
    start = tf.lookup.KeyValueTensorInitializer(tf.constant(["a"]), tf.constant([1]))
    model.table = model.layers[2].table = Table(start, 0)
    model.save(folder / "initializes", save_format="tf")
    (folder / TRACE).unlink(missing_ok=True)  # it ran when the table was made
    return folder / "initializes"
