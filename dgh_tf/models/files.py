"""What a model file is, decided once by its content and ending, and read with limits.

Nothing here makes an object of what a file says. Sizes that a file declares are held against the
bytes it has before anything is unpacked; an HDF5 file may not lead to other files.
"""

from __future__ import annotations

import enum
import io
import json
import math
import mmap
import pathlib
import stat
import zipfile
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dgh_tf.models.hdf5_texts import text_bytes

if TYPE_CHECKING:
    import h5py

MOST_UNPACKED = 20  # bytes unpacked for each of the file: weights shrink about twofold
FREE_BYTES = 16 * 2**20  # unpacked whatever the file's size
CONFIG_BYTES = 16 * 2**20  # of JSON; the largest keras.applications have 2 MiB
MOST_MEMBERS = 100_000  # objects, attributes and chunks of an HDF5 file
MOST_NAMES = 10_000  # texts in one attribute: the names of layers or weights
_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
_HDF5_HEAD, _ZIP_HEAD = b"\x89HDF\r\n\x1a\n", b"PK\x03\x04"
_DEFLATE, _PLAIN_FILTERS = 1, {2, 3, 32000}  # HDF5's numbers; shuffle, fletcher32, h5py's lzf


class Kind(enum.Enum):
    """The forms in which Keras saves a whole model."""

    ARCHIVE = "a .keras archive"
    HDF5 = "an HDF5 file"
    SAVED_MODEL = "a SavedModel folder"


@dataclass(frozen=True)
class ModelFile:
    """A model file that was looked through and found sound.

    config: parsed JSON, as it stands in the file. keras2: whether Keras 2 saved it.
    values: numbers that its weights hold, the most that a model made of the config may have.
    """

    path: pathlib.Path
    kind: Kind
    config: Any
    keras2: bool
    values: int


def read_model_file(path: pathlib.Path) -> ModelFile:
    """Looks through a model file without making anything of it.

    Raises: ValueError, naming the file, when it is no model, is damaged, leads to other files, or
      unpacks to far more than its size.
    """
    kind = _kind(path)
    try:
        if kind is Kind.ARCHIVE:
            return _read_archive(path)
        if kind is Kind.HDF5:
            return _read_hdf5(path)
        return _read_saved_model(path)
    except _Refused as error:
        raise ValueError(f"{path}: {error}") from None
    except RecursionError:
        raise ValueError(f"The config in {path} is nested too deep to be a model's.") from None
    except Exception as error:  # zipfile, zlib, h5py, json, protobuf: each has its own errors
        raise ValueError(
            f"{path} is damaged: it is not whole as {kind.value} "
            f"({' '.join(str(error).split())[:200]}). Save or copy the model again."
        ) from error


def is_tflite(path: pathlib.Path) -> bool:
    """Whether a path leads to a .tflite file, by its content: the mark that all of them have."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(8)[4:] == b"TFL3"


class _Refused(Exception):
    """A reason to refuse a file, without the file's name in front."""


def _kind(path: pathlib.Path) -> Kind:
    if path.is_dir():
        _require_saved_model(path)
        return Kind.SAVED_MODEL
    if not path.is_file():  # reading a pipe or a device may never end
        raise ValueError(
            f"{path} is no regular file. Give the path of a .keras or .h5 file, or of "
            "a SavedModel folder."
        )
    with path.open("rb") as file:
        head = file.read(8)
    hdf5, archive = head == _HDF5_HEAD, head[:4] == _ZIP_HEAD
    if not hdf5 and not archive:
        raise ValueError(
            f"{path} is neither a .keras archive nor an HDF5 file, nor a .tflite file. Pass the "
            "Keras model as it was trained, or a float .tflite file."
        )
    ends_as_hdf5 = path.suffix.lower() in (".h5", ".hdf5")
    if (hdf5 and _holds_archive(path)) or (archive and (ends_as_hdf5 or _holds_hdf5(path))):
        raise ValueError(
            f"{path} is a zip archive and an HDF5 file at once (by content or ending), so that "
            "two programs would read two models in it. Save the model again with model.save."
        )
    return Kind.HDF5 if hdf5 else Kind.ARCHIVE


def _holds_archive(path: pathlib.Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return bool(archive.namelist())
    except Exception:  # four bytes of a weight that look like an archive's end
        return False


def _holds_hdf5(path: pathlib.Path) -> bool:
    import h5py

    return bool(h5py.is_hdf5(str(path)))


def _require_unpacked(unpacked: int, packed: int) -> None:
    if unpacked > MOST_UNPACKED * packed + FREE_BYTES:
        raise _Refused(
            f"it unpacks from {packed / 2**20:.1f} to {unpacked / 2**20:,.0f} MiB, over "
            f"{MOST_UNPACKED} times its size and {FREE_BYTES // 2**20} MiB, as a file made to fill "
            "the memory does. Pass the file as model.save wrote it."
        )


def _parsed(text: bytes | str) -> Any:
    if len(text) > CONFIG_BYTES:
        raise _Refused(
            f"its config has {len(text) / 2**20:.0f} MiB; at most {CONFIG_BYTES // 2**20} are read"
        )
    return json.loads(text)


def _read_archive(path: pathlib.Path) -> ModelFile:
    packed = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        names = [member.filename for member in members]
        _require_unpacked(sum(member.file_size for member in members), packed)
        if _CONFIG not in names:
            raise _Refused(
                "it is a zip file without config.json, so it is no .keras model. "
                "Save the model with model.save"
            )
        for member in members:
            if names.count(member.filename) > 1 or member.compress_type not in (
                zipfile.ZIP_STORED,
                zipfile.ZIP_DEFLATED,
            ):
                raise _Refused(
                    f"its member {member.filename[:60]!a} stands in it twice or is packed in a way "
                    "that Keras does not use. Save the model again with model.save"
                )
            if member.filename not in (_CONFIG, _METADATA, _WEIGHTS) and (
                not member.filename.startswith("assets/") or ".." in member.filename
            ):
                raise _Refused(
                    f"it holds {member.filename[:60]!a}, which is no part of a .keras archive. "
                    "Save the model again with model.save"
                )
        damaged = archive.testzip()
        if damaged:
            raise _Refused(
                f"it is a damaged .keras archive (in {damaged[:60]!a}). Copy the model again"
            )
        if _WEIGHTS not in names:
            raise _Refused(
                f"Keras could not load it: it has no {_WEIGHTS}. Save the model with model.save"
            )
        config = _parsed(archive.read(_CONFIG))
        if isinstance(config, dict):  # losses and optimizers, which Keras is told to leave out
            config.pop("compile_config", None)
        metadata = _parsed(archive.read(_METADATA)) if _METADATA in names else {}
        content = archive.read(_WEIGHTS)
        _require_unpacked(text_bytes(content), packed)
        with _hdf5(io.BytesIO(content)) as file:
            values = _require_plain_hdf5(file, packed)
    version = metadata.get("keras_version", "3") if isinstance(metadata, dict) else "3"
    if path.suffix != ".keras":
        raise _Refused("it is a .keras archive by another name. Give it the ending .keras")
    return ModelFile(path, Kind.ARCHIVE, config, str(version).startswith("2."), values)


def _read_hdf5(path: pathlib.Path) -> ModelFile:
    size = path.stat().st_size
    with open(path, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as seen:
        _require_unpacked(text_bytes(seen), size)
    with _hdf5(str(path)) as file:
        values = _require_plain_hdf5(file, size)
        if "model_config" not in file.attrs:
            raise _Refused("it holds weights without a model. Save the whole model with model.save")
        version, text = file.attrs.get("keras_version", b"2.0"), file.attrs["model_config"]
    version = version.decode() if isinstance(version, bytes) else str(version)
    keras2 = version.startswith(("1.", "2."))
    if not keras2 and path.suffix not in (".h5", ".hdf5"):
        raise _Refused("it is an HDF5 file by another name. Give it the ending .h5")
    return ModelFile(path, Kind.HDF5, _parsed(text), keras2, values)


def _hdf5(source: str | io.BytesIO) -> h5py.File:
    import h5py

    return h5py.File(source, "r")


def _require_plain_hdf5(file: h5py.File, packed: int) -> int:
    """The number of values in the datasets. Raises where a link or dataset leads elsewhere, or what
    is declared is far more than what is stored.
    """
    import h5py

    groups, seen, values, bytes_ = [file], {_address(file)}, 0, 0
    while groups:
        group = groups.pop()
        bytes_ += _attribute_bytes(group)
        for name in group:
            link = group.id.links.get_info(name.encode(errors="surrogateescape"))
            if link.type != h5py.h5l.TYPE_HARD:
                raise _Refused(
                    f"its {name[:60]!a} is a link to another place or file. Such links can read "
                    "other files of this machine; save the model again with model.save"
                )
            item = group[name]
            if _address(item) in seen or len(seen) > MOST_MEMBERS:
                raise _Refused(
                    f"its {name[:60]!a} is an object by a second name, or one of over "
                    f"{MOST_MEMBERS:,}. Save the model again with model.save"
                )
            seen.add(_address(item))
            if isinstance(item, h5py.Group):
                groups.append(item)
            elif isinstance(item, h5py.Dataset):
                bytes_ += _attribute_bytes(item) + _dataset_bytes(item)
                values += item.size or 0
                _require_unpacked(bytes_, packed)
    _require_unpacked(bytes_, packed)
    return values


def _address(item: h5py.Group | h5py.Dataset) -> int:
    import h5py

    return h5py.h5o.get_info(item.id).addr


def _attribute_bytes(item: h5py.Group | h5py.Dataset) -> int:
    """Bytes that the attributes of a group or dataset take."""
    import h5py

    total = 0
    if h5py.h5a.get_num_attrs(item.id) > MOST_MEMBERS:
        raise _Refused(f"it has over {MOST_MEMBERS:,} attributes")
    for name in item.attrs:
        attribute = h5py.h5a.open(item.id, name.encode())
        kind, count = attribute.get_type(), math.prod(attribute.shape)
        if isinstance(kind, h5py.h5t.TypeStringID) and kind.is_variable_str():
            if count > MOST_NAMES:
                raise _Refused(f"its attribute {name[:60]!a} lists over {MOST_NAMES:,} texts")
        elif not isinstance(
            kind,
            h5py.h5t.TypeStringID
            | h5py.h5t.TypeIntegerID
            | h5py.h5t.TypeFloatID
            | h5py.h5t.TypeEnumID,
        ):
            raise _Refused(f"its attribute {name[:60]!a} holds neither text nor numbers")
        total += count * kind.get_size()
    return total


def _dataset_bytes(data: h5py.Dataset) -> int:
    """Bytes that reading a dataset takes. Raises unless its numbers lie in this file."""
    name = data.name[-60:]
    properties = data.id.get_create_plist()
    if data.is_virtual or properties.get_external_count():
        raise _Refused(
            f"the numbers of {name!a} lie in another file. That can read any file of this machine; "
            "save the model again with model.save"
        )
    if data.dtype.kind not in "fiubS" and data.dtype.name != "bfloat16":
        raise _Refused(f"{name!a} holds {data.dtype}, not numbers")
    filters = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
    if filters.count(_DEFLATE) > 1 or set(filters) - _PLAIN_FILTERS - {_DEFLATE}:
        raise _Refused(f"{name!a} is packed in a way that Keras does not use. Save the model again")
    declared = (data.size or 0) * data.dtype.itemsize
    if not data.chunks:
        return declared
    return max(declared, _chunk_bytes(data, _DEFLATE in filters))


def _chunk_bytes(data: h5py.Dataset, packed: bool) -> int:
    """Bytes of one chunk; where chunks are packed each is unpacked here, up to what it may hold."""
    size = math.prod(data.chunks) * data.dtype.itemsize
    if not packed or size > FREE_BYTES + data.id.get_storage_size() * MOST_UNPACKED:
        return size
    places: list = []
    data.id.chunk_iter(lambda info: places.append(info.chunk_offset))
    if len(places) > MOST_MEMBERS:
        raise _Refused(f"{data.name[-60:]!a} has over {MOST_MEMBERS:,} chunks")
    for place in places:
        skipped, stored = data.id.read_direct_chunk(place)
        if not skipped and len(zlib.decompressobj().decompress(stored, size + 8)) > size + 4:
            raise _Refused(f"a chunk of {data.name[-60:]!a} unpacks to more than it declares")
    return size


def _require_saved_model(folder: pathlib.Path) -> None:
    """Raises ValueError for a folder that is no Keras 2 SavedModel, or has a link or a pipe in it
    where a file is expected.
    """
    if not (folder / "saved_model.pb").exists():
        raise ValueError(
            f"{folder} is a folder without saved_model.pb, so it is no SavedModel. "
            "Give the path of the model in it."
        )
    if not (folder / "keras_metadata.pb").exists():
        raise ValueError(
            f"{folder} is a SavedModel without keras_metadata.pb: it holds a graph, "
            "as model.export writes it, and its "
            "BatchNorm layers cannot be told from that. Pass the .keras or .h5 "
            "file it was exported from."
        )
    read = [folder / "saved_model.pb", folder / "keras_metadata.pb"]
    for item in (*read, folder / "variables", *(folder / "variables").glob("*")):
        mode = item.lstat().st_mode if item.exists() or item.is_symlink() else 0
        expected = stat.S_ISDIR if item.name == "variables" else stat.S_ISREG
        if not expected(mode):
            raise ValueError(
                f"{item} is no regular file, is a link, or is missing. A SavedModel must hold its "
                "files itself: copy it with cp -rL, or save it again."
            )


def _read_saved_model(folder: pathlib.Path) -> ModelFile:
    """The config of the model in keras_metadata.pb. Its graph and functions are not read."""
    import tensorflow as tf
    from tf_keras.protobuf import saved_metadata_pb2

    file = folder / "keras_metadata.pb"
    if file.stat().st_size > 4 * CONFIG_BYTES:
        raise _Refused(f"its keras_metadata.pb has over {4 * CONFIG_BYTES // 2**20} MiB")
    metadata = saved_metadata_pb2.SavedMetadata()
    metadata.ParseFromString(file.read_bytes())
    root = next((node for node in metadata.nodes if node.node_path == "root"), None)
    described = _parsed(root.metadata) if root else None
    if not isinstance(described, dict) or not isinstance(described.get("class_name"), str):
        raise _Refused("its keras_metadata.pb describes no model. Save it again with model.save")
    reader = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
    types = reader.get_variable_to_dtype_map()
    sizes = {name: math.prod(s) for name, s in reader.get_variable_to_shape_map().items()}
    if any(sizes[name] > 1 for name in sizes if not types[name].size):
        raise _Refused("its variables hold lists of texts. Save the model again with model.save")
    stored = sum(item.stat().st_size for item in (folder / "variables").glob("*"))
    _require_unpacked(sum(sizes[name] * (types[name].size or 1) for name in sizes), stored)
    config = {"class_name": described["class_name"], "config": described.get("config")}
    return ModelFile(folder, Kind.SAVED_MODEL, config, True, sum(sizes.values()))
