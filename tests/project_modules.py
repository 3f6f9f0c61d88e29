"""The project's modules, and what each imports of the project."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGES = ("tfkfac", "trainers", "tools", "tests")


def modules() -> dict[str, pathlib.Path]:
    """Returns the project's modules by dotted name; those of tests/ are
    imported by bare names."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if parts[-1] == "__init__":
                parts = parts[:-1]
            if package == "tests":
                parts = parts[1:]
            found[".".join(parts)] = path
    return found


def imports(
    path: pathlib.Path, names: set[str], at_once: bool = False
) -> list[str]:
    """Returns the project's modules that a file imports.

    Args:
        path: The file.
        names: The project's modules.
        at_once: Whether imports within functions, and for types alone, are
            left out.
    """
    if path.parent.name != "tests":  # Which have bare names.
        names = {n for n in names if n.split(".")[0] in PACKAGES}
    tree = ast.parse(path.read_text())
    nodes = _outside_functions(tree) if at_once else ast.walk(tree)
    found = set()
    for node in nodes:
        candidates = []
        if isinstance(node, ast.Import):
            candidates = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            candidates = [f"{node.module}.{alias.name}" for alias in node.names]
            candidates = [c if c in names else node.module for c in candidates]
        found.update(name for name in candidates if name in names)
    return sorted(found)


def _outside_functions(tree):
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
        of_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(
            node.test
        )
        if not of_types and not isinstance(node, functions):
            waiting += ast.iter_child_nodes(node)
