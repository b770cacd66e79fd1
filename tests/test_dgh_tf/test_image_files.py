"""Image files against pixels made by hand: every mode, every orientation, and what is no image."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from benchmarks.data import datasets
from dgh_tf.common.image_files import list_image_files, read_image
from dgh_tf.generation.real_images import load_hint
from tflite_export import load_calibration

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def grey_of(red, green, blue):
    """ITU-R 601 luma in float64, the definition that greyscale conversion follows."""
    return 0.299 * red + 0.587 * green + 0.114 * blue


def with_palette(alpha):
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putdata([0, 1])
    if alpha:
        image.info["transparency"] = 0
    return image


def made(mode, pixels):
    image = Image.new(mode, (len(pixels), 1))
    image.putdata(pixels)
    return image


# one row of two pixels each, and what they are in red, green and blue
MODES = {
    "1": (made("1", [0, 1]), [(0, 0, 0), (255, 255, 255)]),
    "L": (made("L", [7, 200]), [(7, 7, 7), (200, 200, 200)]),
    "LA": (made("LA", [(7, 255), (200, 0)]), [(7, 7, 7), (200, 200, 200)]),
    "P": (with_palette(False), [RED, BLUE]),
    "P with a transparent colour": (with_palette(True), [RED, BLUE]),
    "RGB": (made("RGB", [(1, 2, 3), (250, 128, 9)]), [(1, 2, 3), (250, 128, 9)]),
    "RGBA": (made("RGBA", [(1, 2, 3, 0), (250, 128, 9, 255)]), [(1, 2, 3), (250, 128, 9)]),
    # 32768 / 257 = 127.502, 300 / 257 = 1.17
    "I;16": (
        Image.fromarray(np.array([[32768, 300]], np.uint16)),
        [(128, 128, 128), (1, 1, 1)],
    ),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_of_png_gives_the_colours_it_shows(tmp_path, mode):
    image, expected = MODES[mode]
    image.save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png", shape=(1, 2, 3))
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read[0], expected)
    grey = read_image(tmp_path / "a.png", shape=(1, 2, 1))
    np.testing.assert_allclose(grey[0, :, 0], [grey_of(*pixel) for pixel in expected], atol=0.51)


def test_cmyk_is_ink_and_not_light(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    read = read_image(tmp_path / "a.jpg", shape=(8, 8, 3))  # no cyan, all magenta and yellow: red
    np.testing.assert_allclose(read, np.broadcast_to(RED, (8, 8, 3)), atol=3)


def png16(path, rows, colour_type):
    """A 16-bit PNG by hand: Pillow cannot write colour at 16 bits."""
    depth = {0: 1, 2: 3, 4: 2, 6: 4}[colour_type]
    height, width = len(rows), len(rows[0]) // depth
    data = b"".join(b"\0" + struct.pack(f">{len(row)}H", *row) for row in rows)

    def chunk(name, content):
        body = name + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("colour_type", "row", "expected"),
    [
        (0, [0, 0x8080, 0xFFFF], [(0, 0, 0), (128, 128, 128), (255, 255, 255)]),
        (4, [0, 0xFFFF, 0x4040, 0xFFFF], [(0, 0, 0), (64, 64, 64)]),
        (2, [0x1010, 0x2020, 0xFFFF], [(16, 32, 255)]),
        (6, [0x1010, 0x2020, 0xFFFF, 0], [(16, 32, 255)]),
    ],
)
def test_16_bit_png_of_every_kind_keeps_its_high_bits(tmp_path, colour_type, row, expected):
    png16(tmp_path / "a.png", [row], colour_type)
    read = read_image(tmp_path / "a.png", shape=(1, len(expected), 3))
    np.testing.assert_array_equal(read[0], expected)


# EXIF 2.3, tag 274: which side of the picture the stored rows and columns start at
ORIENTATIONS = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: np.rot90(x),
}


@pytest.mark.parametrize("kind", ["rgb", "16 bits"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_orientation_is_applied(tmp_path, orientation, kind):
    values = np.arange(1, 7, dtype=np.uint8).reshape(2, 3) * 40
    stored = values.astype(np.uint16) * 257 if kind == "16 bits" else np.stack([values] * 3, -1)
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    expected = ORIENTATIONS[orientation](values)
    read = read_image(tmp_path / "a.png", shape=(*expected.shape, 3))
    np.testing.assert_array_equal(read, np.stack([expected] * 3, -1))


def readers(folder):
    """The same folder as calibration data, as a benchmark's set and as real images: [n, H, W, C] in
    0..255 each.
    """
    shape = (4, 6, 3)
    return {
        "calibration": load_calibration(folder, image_shape=shape).images,
        "benchmark": datasets.load(str(folder), role="real", input_shape=shape)[0],
        "real_hint": load_hint(folder, shape=shape, low=(0.0,), high=(255.0,)),
    }


def test_all_commands_read_a_folder_alike(tmp_path):
    """Cropped, not stretched: 8 x 24 holds the input's 4 x 6 twice as large in its middle."""
    (tmp_path / "0").mkdir()
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 6:18] = 200
    Image.fromarray(wide).save(tmp_path / "0" / "a.png")
    Image.fromarray(np.full((4, 6), 40 * 257, np.uint16)).save(tmp_path / "0" / "b.png")
    exif = Image.Exif()
    exif[274] = 6
    turned = np.zeros((6, 4, 3), np.uint8)
    turned[0] = 90  # the stored first row is the picture's last column
    Image.fromarray(turned).save(tmp_path / "0" / "c.png", exif=exif)
    found = readers(tmp_path)
    for images in found.values():
        np.testing.assert_array_equal(images, found["calibration"])
        assert (images[0, :, 1:-1] == 200).all() and (images[1] == 40).all()
        assert (images[2, :, -1] == 90).all() and (images[2, :, :-1] == 0).all()


def not_an_image(path, kind):
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    elif kind == "a link to nothing":
        path.symlink_to(path.parent / "gone")
    elif kind == "a bomb":
        Image.new("1", (20000, 20000)).save(path)  # 400 million pixels in 50 kB
    elif kind == "PostScript":
        path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshow\n")
    elif kind == "cut off":
        Image.effect_noise((64, 64), 80).save(path)
        path.write_bytes(path.read_bytes()[:900])
    elif kind == "floats":
        Image.new("F", (4, 4), 0.5).save(path, format="TIFF")
    else:
        path.write_bytes({"text": b"no image", "empty": b""}[kind])


@pytest.mark.parametrize(
    "kind",
    ["a pipe", "a device", "a link to nothing", "a bomb", "PostScript", "cut off", "floats", "text",
     "empty"],
)  # fmt: skip
def test_what_is_no_image_is_one_line_in_every_command(tmp_path, kind, recwarn):
    (tmp_path / "0").mkdir()
    not_an_image(tmp_path / "0" / "a.png", kind)
    shape = (4, 6, 3)
    for read in (
        lambda: load_calibration(tmp_path, image_shape=shape),
        lambda: datasets.load(str(tmp_path), role="real", input_shape=shape),
        lambda: load_hint(tmp_path, shape=shape, low=(0.0,), high=(255.0,)),
    ):
        with pytest.raises(ValueError, match=r"a\.png cannot be read as an image \(.+\)\.") as told:
            read()
        assert len(str(told.value).splitlines()) == 1
    assert not recwarn.list


def test_large_images_below_the_bomb_limit_are_read_without_a_warning(
    tmp_path, monkeypatch, recwarn
):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    Image.new("RGB", (6, 4), RED).save(tmp_path / "a.png")  # 24 pixels: Pillow warns
    assert (read_image(tmp_path / "a.png", shape=(4, 6, 3)) == RED).all()
    assert not recwarn.list


def test_hidden_files_and_folders_named_like_images_are_no_images(tmp_path):
    (tmp_path / "b.png").mkdir()
    for name in ("b.png/1.PNG", "a.jpg"):
        Image.new("RGB", (2, 2)).save(tmp_path / name)
    (tmp_path / "._a.jpg").write_bytes(b"what macOS leaves in archives")
    (tmp_path / "notes.txt").write_text("no image")
    assert [str(p.relative_to(tmp_path)) for p in list_image_files(tmp_path)] == [
        "a.jpg",
        "b.png/1.PNG",
    ]
