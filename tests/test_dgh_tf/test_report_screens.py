"""report.html in a browser, phone and desktop, light and dark, for every kind of input."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import report_folders

from dgh_tf.report import page as report

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
SHAPES = {
    "photographs": (20, 64, 64, 3),
    "spectrograms": (20, 49, 10, 1),
    "sequences": (20, 128, 9),
    "vectors": (40, 5000),
}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine"),
]


def browse(tmp_path, page, *options):
    """What the browser prints for a page, in a profile of its own."""
    return subprocess.run(
        [BROWSER, *OPTIONS, f"--user-data-dir={tmp_path / 'profile'}", *options, page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout


def screenshot(tmp_path, page, *, width, height, dark=False):
    """The page's first `height` pixels as uint8 [height, width, 3]."""
    from PIL import Image

    file = tmp_path / f"{width}{'-dark' if dark else ''}.png"
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    browse(tmp_path, page, f"--screenshot={file}", f"--window-size={width},{height}", *scheme)
    return np.asarray(Image.open(file).convert("RGB"))


def widths(tmp_path, page, *, width):
    """(width of the page's content, names of elements that reach beyond it) in a frame `width`
    pixels wide, with everything unfolded.
    """
    script = """<script>
    document.querySelectorAll("details").forEach(each => { each.open = true; });
    const wide = [...document.querySelectorAll("body *")].filter(
      each => each.getBoundingClientRect().right > innerWidth + 0.5 && !each.closest("svg"));
    parent.document.title = document.documentElement.scrollWidth + "|" +
      wide.map(each => each.tagName + "." + each.className).join(",");
    </script></body>"""
    source = page.read_text().replace("</body>", script)
    frame = tmp_path / "frame.html"
    frame.write_text(
        "<!doctype html><title>none</title><iframe style='border: 0; height: 2000px; width: "
        f'{width}px\' srcdoc="{html.escape(source)}"></iframe>'
    )
    title = re.search(r"<title>(.*?)</title>", browse(tmp_path, frame, "--dump-dom")).group(1)
    content, _, beyond = title.partition("|")
    return int(content), beyond


@pytest.fixture(params=[True, False], ids=["with files", "images alone"])
def with_files(request):
    return request.param


@pytest.mark.parametrize("kind", SHAPES)
def test_page_fits_a_phone_and_shows_in_light_and_dark(tmp_path, kind, with_files):
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 255, SHAPES[kind])
    names = [f"a_rather_long_name_of_a_batch_normalization_layer_{i}" for i in range(30)]
    manifest = report_folders.write(
        tmp_path,
        images,
        model=f"{'long_name_' * 8}.keras",
        gap_start=dict.fromkeys(names, 1.0),
        gap_end=dict.fromkeys(names, 0.01),
    )
    if with_files:
        for name in ("model", "another_name_that_is_rather_long_for_a_phone_to_show_on_a_line"):
            (tmp_path / f"{name}.json").write_text(json.dumps(report_folders.PROOF))
    report.write_page(
        tmp_path, manifest=manifest, metrics=report_folders.METRICS, command="python -m x " * 20
    )
    page = tmp_path / "report.html"
    for width in (390, 1280):
        content, beyond = widths(tmp_path, page, width=width)
        assert content <= width and not beyond, (width, content, beyond)
    light, dark = (
        screenshot(tmp_path, page, width=1280, height=1000, dark=dark) for dark in (False, True)
    )
    assert light.shape == dark.shape == (1000, 1280, 3)
    assert np.median(light) > 240 and np.median(dark) < 40
    for picture in (light, dark):  # text stands out from the paper, and the image strip has colours
        assert picture.max() - picture.min() > 180
        assert len(np.unique(picture[:, 200:1080].reshape(-1, 3), axis=0)) > 100
