"""BUILD: its targets hold all files, and depend on what these import."""

import pathlib

import project_modules
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODULES = project_modules.modules()


class Targets(dict):
    """The targets of BUILD by name; what a rule is called with."""

    def rule(self, kind):
        def add(name, **settings):
            assert name not in self, name
            self[name] = {"kind": kind, **settings}

        return add


def glob(patterns, exclude=()):
    """As Bazel's, for this folder."""
    left_out = {p for pattern in exclude for p in ROOT.glob(pattern)}
    found = {p for pattern in patterns for p in ROOT.glob(pattern)} - left_out
    return sorted(p.relative_to(ROOT).as_posix() for p in found if p.is_file())


@pytest.fixture(scope="module")
def targets():
    """BUILD is Starlark, and as such Python."""
    found = Targets()
    rules = {
        kind: found.rule(kind)
        for kind in ("py_library", "py_binary", "py_test")
    }
    others = dict.fromkeys(("package", "licenses", "exports_files"))
    ignored = {name: lambda *args, **settings: None for name in others}
    exec((ROOT / "BUILD").read_text(), {"glob": glob, **rules, **ignored})
    return found


def test_each_file_is_in_a_target(targets):
    held = {path for t in targets.values() for path in t["srcs"]}
    files = {path.relative_to(ROOT).as_posix() for path in MODULES.values()}
    files |= {f"examples/{p.name}" for p in (ROOT / "examples").glob("*.py")}
    assert files == held


def test_files_of_targets_exist(targets):
    for name, target in targets.items():
        for path in target["srcs"]:
            assert (ROOT / path).is_file(), name


def library_of(module):
    """The target of a module of the project."""
    package = module.split(".")[0]
    if package in ("tfkfac", "trainers", "tools"):
        return f":{package}"
    return ":test_support"


@pytest.mark.parametrize(
    "of", ["tfkfac", "trainers", "tools", "test_support", "tests", "examples"]
)
def test_dependencies_are_the_imports(targets, of):
    """Of all targets that a glob makes together."""
    together = {
        name: target
        for name, target in targets.items()
        if name == of
        or (of == "tests" and target["kind"] == "py_test")
        or (of == "examples" and target["srcs"][0].startswith("examples/"))
    }
    (listed,) = {tuple(t.get("deps", ())) for t in together.values()}
    sources = {ROOT / path for t in together.values() for path in t["srcs"]}
    imported = {
        library_of(name)
        for path in sources
        for name in project_modules.imports(path, set(MODULES))
    }
    assert imported - {f":{of}"} == set(listed)


def test_each_program_has_a_target(targets):
    programs = [
        path.relative_to(ROOT).as_posix()
        for folder in ("tools", "trainers", "tfkfac", "examples")
        for path in (ROOT / folder).rglob("*.py")
        if 'if __name__ == "__main__":' in path.read_text()
    ]
    held = [
        path
        for target in targets.values()
        if target["kind"] == "py_binary"
        for path in target["srcs"]
    ]
    assert sorted(held) == sorted(programs)


def test_each_test_has_a_target(targets):
    tests = [n for n, t in targets.items() if t["kind"] == "py_test"]
    files = [path.stem for path in (ROOT / "tests").glob("*_test.py")]
    assert sorted(tests) == sorted(files)
