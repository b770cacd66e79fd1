"""The import graph of the three packages, read from their sources."""

import ast
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = ("dgh_tf", "tflite_export", "benchmarks")


def module_name(path):
    """dgh_tf/ops/canvas.py -> dgh_tf.ops.canvas; a package's __init__.py -> the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(path): path for package in PACKAGES for path in (ROOT / package).rglob("*.py")
}


def is_command(name):
    """Whether users start it as `python -m name`: at its end it calls the console's run."""
    return any(
        isinstance(node, ast.If)
        and "__main__" in ast.unparse(node.test)
        and re.search(r"^((console\.)?run\(|command\(\))", ast.unparse(node.body), re.MULTILINE)
        for node in ast.parse(MODULES[name].read_text()).body
    )


def imported_modules(name):
    """Modules of these packages that a module imports, at its top or inside a function.

    An __init__.py's imports for type checkers do not count: it stands for its whole package, so
    that every file below would be in a circle with it.
    """
    tree, path = ast.parse(MODULES[name].read_text()), MODULES[name]
    skipped = {
        id(node)
        for block in ast.walk(tree)
        if path.name == "__init__.py"
        and isinstance(block, ast.If)
        and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in MODULES:
                    yield inner
                elif not alias.name.startswith("__"):  # __version__ is no part of the package
                    yield node.module


def graph():
    """{module: the modules that it imports}."""
    return {name: sorted(set(imported_modules(name)) - {name}) for name in MODULES}


def circles(edges):
    """Groups of two and more modules each of which imports all others, directly or not (Tarjan)."""
    order, low, stack, found = {}, {}, [], []

    def visit(node):
        order[node] = low[node] = len(order)
        stack.append(node)
        for target in edges[node]:
            if target not in order:
                visit(target)
            if target in stack:
                low[node] = min(low[node], low[target])
        if low[node] == order[node]:
            group = stack[stack.index(node) :]
            del stack[-len(group) :]
            if len(group) > 1:
                found.append(sorted(group))

    for node in edges:
        if node not in order:
            visit(node)
    return found
