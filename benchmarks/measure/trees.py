"""Another commit of this project beside this tree, to compare the two on one machine."""

from __future__ import annotations

import contextlib
import pathlib
import subprocess
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def checked_out(commit: str, folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """The tree of a commit, in a worktree that is taken away afterwards. Raises ValueError for an
    unknown commit.
    """
    git = ["git", "-C", str(ROOT), "worktree"]
    done = subprocess.run(
        [*git, "add", "--detach", str(folder), commit], capture_output=True, text=True
    )
    if done.returncode:
        raise ValueError(f"--base={commit}: git cannot check it out ({done.stderr.strip()}).")
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], capture_output=True)
