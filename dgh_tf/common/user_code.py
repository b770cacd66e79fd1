"""Python code that the user asks for by name: modules that register layers of their own."""

from __future__ import annotations

import importlib
import importlib.util
import pathlib
import sys
from collections.abc import Sequence


def import_user_code(names: Sequence[str]) -> None:
    """Imports modules and .py files, in order, so that they can register their Keras layers.

    Args:
      names: modules as in an import statement, found from the working folder too, or paths that end
        in .py.
    Raises:
      FileNotFoundError: no such .py file. ValueError: no such module, a file of a name that is
        taken, or an error inside, which the text names.

    Example:
      >>> import_user_code(["json"])
    """
    for name in names:
        try:
            _import_file(pathlib.Path(name)) if name.endswith(".py") else _import_module(name)
        except (FileNotFoundError, ValueError):
            raise
        except Exception as error:
            raise ValueError(
                f"import={name} ended in {type(error).__name__}: {error}. The code must run by "
                "itself: try python -c 'import ...' with it."
            ) from error


def _import_module(name: str) -> None:
    folder = str(pathlib.Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)  # a console script does not look there by itself
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.split(".")[0] and error.name != name:
            raise
        raise ValueError(
            f"import={name}: no such module. Give a module that python can import, or the path of "
            "a .py file."
        ) from None
    except ValueError as error:
        raise ValueError(f"import={name} ended in ValueError: {error}") from error


def _import_file(path: pathlib.Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"import={path}: no such file.")
    known = sys.modules.get(path.stem)
    if known is not None:
        if getattr(known, "__file__", None) == str(path.resolve()):
            return
        raise ValueError(
            f"import={path}: a module '{path.stem}' is loaded already. Give the file another name."
        )
    spec = importlib.util.spec_from_file_location(path.stem, path.resolve())
    if spec is None or spec.loader is None:
        raise ValueError(f"import={path} is no Python file.")
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[path.stem]
        if isinstance(error, ValueError):
            raise ValueError(f"import={path} ended in ValueError: {error}") from error
        raise
