"""Writes BUILD: a Bazel target for each module, its dependencies its imports.

    python -m tools.write_build [--check]

With --check nothing is written, and the exit status is 1 where BUILD is not
what would be written.
"""

import ast
import pathlib
import sys

from absl import app, flags

_CHECK = flags.DEFINE_bool("check", False, "Compare, do not write.")

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGES = ("tfkfac", "trainers", "tools", "tests")
PROGRAM = 'if __name__ == "__main__":'
HEADER = """# A target for each module; `python -m tools.write_build` wrote it.

package(default_visibility = ["//visibility:public"])

licenses(["notice"])

exports_files(["LICENSE"])
"""


def modules() -> dict[str, pathlib.Path]:
    """Returns the project's modules by dotted name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if parts[-1] == "__init__":
                parts = parts[:-1]
            found[".".join(parts)] = path
    return found


def imports(path: pathlib.Path, names: set[str]) -> list[str]:
    """Returns the project's modules that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        candidates = []
        if isinstance(node, ast.Import):
            candidates = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            candidates = [f"{node.module}.{alias.name}" for alias in node.names]
            candidates = [c if c in names else node.module for c in candidates]
        # Tests import their neighbours by bare name.
        for name in candidates:
            if name in names:
                found.add(name)
            elif path.parent.name == "tests" and f"tests.{name}" in names:
                found.add(f"tests.{name}")
    return sorted(found)


def target(name: str, path: pathlib.Path, names: set[str]) -> str:
    """Returns the rule of one module."""
    source = path.read_text()
    if path.name.endswith("_test.py"):
        rule = "py_test"
    elif PROGRAM in source:
        rule = "py_binary"
    else:
        rule = "py_library"
    relative = path.relative_to(ROOT).as_posix()
    lines = [f"{rule}(", f'    name = "{name}",', f'    srcs = ["{relative}"],']
    if rule != "py_library":
        lines.append(f'    main = "{relative}",')
    deps = [d for d in imports(path, names) if d != name]
    if deps:
        lines += ["    deps = [", *(f'        ":{d}",' for d in deps), "    ],"]
    return "\n".join([*lines, ")"])


def build_file() -> str:
    """Returns the text of BUILD."""
    found = modules()
    rules = [target(name, path, set(found)) for name, path in found.items()]
    return "\n".join([HEADER, "\n\n".join(rules)]) + "\n"


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    path, text = ROOT / "BUILD", build_file()
    if not _CHECK.value:
        path.write_text(text)
    elif not path.exists() or path.read_text() != text:
        sys.exit("BUILD is out of date: run python -m tools.write_build.")


if __name__ == "__main__":
    app.run(main)
