"""The layers of `tfkfac/`: each module imports only what stands above it in the
table of CONTRIBUTING.md, and the library nothing of the programs."""

import pathlib
import re

import project_modules
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODULES = project_modules.modules()
LIBRARY = {name: path for name, path in MODULES.items()
           if name.startswith("tfkfac.")}  # fmt: skip


def table():
    """The rows of the table, each a list of modules and packages."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    begin, end = text.index("Modules of `tfkfac/`"), text.index("## Conv")
    rows = []
    for line in text[begin:end].splitlines():
        if not line.startswith("| `"):
            continue
        folder, names = "", []
        for name in re.findall(r"`([\w/]+)`", line.split("|")[1]):
            if name.endswith("/"):
                names.append(name)
                continue
            if "/" in name:
                folder = name.rpartition("/")[0] + "/"
            names.append(folder + name.rpartition("/")[2])
        rows.append(names)
    return rows


ROWS = table()


def row_of(module):
    """The row of a module: that of its name, or of the longest package."""
    path = module.removeprefix("tfkfac.").replace(".", "/")
    fitting = [
        (len(name), number)
        for number, names in enumerate(ROWS)
        for name in names
        if name == path or (name.endswith("/") and path.startswith(name))
    ]
    if MODULES[module].name == "__init__.py":  # As the last of its modules.
        fitting = [
            (0, number)
            for number, names in enumerate(ROWS)
            for name in names
            if name.startswith(path + "/")
        ]
    return max(fitting)[1] if fitting else None


def test_each_module_has_a_row():
    assert [m for m in LIBRARY if row_of(m) is None] == []


def test_each_row_names_modules_that_exist():
    missing = [
        name
        for names in ROWS
        for name in names
        if not (ROOT / "tfkfac" / name).is_dir()
        and not (ROOT / "tfkfac" / f"{name}.py").exists()
    ]
    assert missing == []


@pytest.mark.parametrize("module", LIBRARY)
def test_imports_stand_above(module):
    row = row_of(module)
    below = [
        name
        for name in project_modules.imports(LIBRARY[module], set(LIBRARY))
        if row_of(name) > row
    ]
    assert below == [], f"{module} is in the row of {ROWS[row]}"


def test_imports_have_no_circle():
    """Of modules that are imported when they are, not within functions."""
    graph = {
        name: [
            d
            for d in project_modules.imports(path, set(LIBRARY), at_once=True)
            if d != name
        ]
        for name, path in LIBRARY.items()
    }
    done = set()

    def visit(name, way):
        assert name not in way, " -> ".join([*way, name])
        if name not in done:
            for dependency in graph[name]:
                visit(dependency, [*way, name])
            done.add(name)

    for name in graph:
        visit(name, [])


def test_the_programs_are_not_imported():
    everything = set(MODULES)
    for name, path in {
        "tfkfac": ROOT / "tfkfac/__init__.py",
        **LIBRARY,
    }.items():
        found = project_modules.imports(path, everything)
        outside = [d for d in found if d.split(".")[0] != "tfkfac"]
        assert outside == [], name


def test_examples_import_the_library_alone():
    for path in (ROOT / "examples").glob("*.py"):
        found = project_modules.imports(path, set(MODULES))
        assert set(found) == {"tfkfac"}, path.name
