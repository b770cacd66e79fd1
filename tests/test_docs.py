"""The documentation: links lead somewhere, folders are all described, snippets run."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = ("dgh_tf", "tflite_export", "benchmarks")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)")


def name_of(path):
    return str(path.relative_to(ROOT))


def anchors(path):
    """The ids that a page's headings get: small letters, spaces as hyphens, no punctuation."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for link in LINK.findall(page.read_text()):
        path, _, anchor = link.partition("#")
        if "://" not in link:
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_paths_of_the_code_exist(page):
    """`dgh_tf/...` and the like in backticks: a folder or a file of this repository."""
    for path in re.findall(r"`((?:dgh_tf|tflite_export|benchmarks|tests|docs)/[\w./]*)`",
                           page.read_text()):  # fmt: skip
        assert (ROOT / path).exists(), path


def test_troubleshooting_quotes_messages_that_the_code_has():
    page = (ROOT / "docs" / "guide" / "troubleshooting.md").read_text()
    texts = [
        node.value
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    rows = re.findall(r"^\| (`.+?`) \| ", page.partition("## By message")[2], re.MULTILINE)
    quoted = [each for row in rows for each in re.findall(r"`([^`]+)`", row)]
    assert len(quoted) > 20
    assert not [each for each in quoted if not any(each in text for text in texts)]


@pytest.mark.parametrize("package", PACKAGES)
def test_comments_name_pages_that_exist(package):
    for file in (ROOT / package).rglob("*.py"):
        for path in re.findall(r"docs/[\w./]+\.md", file.read_text()):
            assert (ROOT / path).exists(), (file, path)


def first_sentence(folder):
    """What a folder's __init__.py says it is."""
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    return " ".join(text.split("\n\n")[0].split())


def table_of_folders():
    folders = [
        folder
        for package in PACKAGES
        for folder in [
            ROOT / package,
            *sorted(p for p in (ROOT / package).rglob("*") if p.is_dir()),
        ]
        if list(folder.glob("*.py"))
    ]
    return [f"| `{name_of(folder)}` | {first_sentence(folder)} |" for folder in folders]


def test_every_folder_stands_in_the_architecture_with_its_own_words():
    lines = (ROOT / "docs" / "architecture.md").read_text().splitlines()
    found = [line for line in lines if re.match(r"\| `\w+(/\w+)*` \|", line)]
    wanted = table_of_folders()
    assert found == wanted, "docs/architecture.md should list:\n" + "\n".join(wanted)
    assert not [line for line in wanted if line.endswith("|  |")], "a folder says nothing of itself"


def snippets(page):
    """The Python blocks of a page, in order."""
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def test_examples_run_from_top_to_bottom(tmp_path, monkeypatch):
    """One program, as a reader would type it; what it prints is not compared."""
    page = ROOT / "docs" / "guide" / "examples.md"
    monkeypatch.chdir(tmp_path)
    names = {}
    parts = snippets(page)
    assert len(parts) >= 5
    for part in parts:
        exec(compile(part, str(page), "exec"), names)
    assert (tmp_path / "model.tflite").stat().st_size > 10_000


def test_the_readme_runs(tmp_path, monkeypatch):
    """The README's Python, word for word but for a smaller set of images and fewer steps."""
    import dgh_tf

    monkeypatch.chdir(tmp_path)
    (text,) = snippets(ROOT / "README.md")
    assert text.count("num_images=64") == 1
    small = dgh_tf.GenerationConfig(num_images=8, steps=6, input_range=(-1, 1))
    text = text.replace("num_images=64", "num_images=8, steps=6, input_range=(-1, 1)")
    assert text.count('scheme="int8"') == 1
    text = text.replace('scheme="int8"', 'scheme="int8", config=small')
    names = {"small": small}
    exec(compile(text, "README.md", "exec"), names)
    assert (tmp_path / "model.tflite").read_bytes() == names["quantized"].tflite
    assert (tmp_path / "model.json").exists()
