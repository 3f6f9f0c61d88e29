"""What README and docs say: code that runs, commands and tests that exist."""

import ast
import dataclasses
import importlib.util
import inspect
import pathlib
import re
import tomllib

import pytest

import tfkfac
from tfkfac import arguments
from tools import convolution_pictures
from trainers.config import ImageConfig, Settings, TextConfig

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ALL = [*PAGES, ROOT / "CONTRIBUTING.md"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def blocks(path, language):
    """The fenced blocks of a language on a page."""
    return [
        b for kind, b in FENCE.findall(path.read_text()) if kind == language
    ]


WITH_CODE = [path for path in PAGES if blocks(path, "python")]


@pytest.mark.parametrize("path", WITH_CODE, ids=name_of)
def test_the_code_of_a_page_runs(path, tmp_path, monkeypatch):
    """All blocks of a page, in their order, as one program."""
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "page"}
    for number, block in enumerate(blocks(path, "python"), 1):
        code = compile(block, f"{path.name}, block {number}", "exec")
        exec(code, namespace)


def test_pages_have_code():
    names = {name_of(path) for path in WITH_CODE}
    assert {"README.md", "docs/ten_minutes.md", "docs/own_layers.md"} <= names


def commands(path):
    """The command lines on a page, in blocks and in the text."""
    text = path.read_text().replace("\\\n", " ")
    return re.findall(r"python -m [\w.]+[^`\n#|)]*", text)


def flags_of(module):
    """The flags of all trainers, and what the sources of a program quote."""
    package = module.split(".")[0]
    sources = "".join(
        path.read_text() for path in (ROOT / package).rglob("*.py")
    )
    fields = (*dataclasses.fields(ImageConfig), *dataclasses.fields(TextConfig))
    names = {field.name for field in (*fields, *dataclasses.fields(Settings))}
    names |= {f"no{name}" for name in names}
    return names | set(re.findall(r'"-*(\w+)"', sources))


def test_commands_name_programs_and_their_flags():
    found = {c for path in PAGES for c in commands(path)}
    assert len(found) > 20
    of_module = {}
    for command in found:
        module = command.split()[2].rstrip(".")
        if module.split(".")[0] not in ("tfkfac", "tools", "trainers"):
            continue
        assert importlib.util.find_spec(module), command
        if module not in of_module:
            of_module[module] = flags_of(module)
        for flag in re.findall(r"--(\w+)", command):
            known = {"help", *of_module[module]}
            assert flag in known, (flag, command)


def test_tables_of_arguments_name_those_of_kfac():
    """In migrating.md the second column, in tuning.md the first."""
    known = {*inspect.signature(tfkfac.KFAC.__init__).parameters}
    known |= arguments.of_keras()
    named = set()
    for page, column in (("migrating", 2), ("tuning", 1)):
        text = (ROOT / "docs" / f"{page}.md").read_text()
        if page == "tuning":
            begin = text.index("| Argument |")
            text = text[begin : text.index("\n\n", begin)]
        for line in text.splitlines():
            if line.startswith("|"):
                cell = line.split("|")[column]
                named |= set(re.findall(r"`(\w+)[=`]", cell))
    assert len(named) > 20
    assert named <= known


def test_make_commands_are_targets():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    markers = project["tool"]["pytest"]["ini_options"]["markers"]
    targets |= {f"test-{marker.split(':')[0]}" for marker in markers}
    for path in ALL:
        named = re.findall(
            r"(?:`|^)make ([\w-]+)", path.read_text(), re.MULTILINE
        )
        assert set(named) <= targets, name_of(path)


def test_tests_that_pages_name_exist():
    named = {
        match
        for path in ALL
        for match in re.findall(
            r"tests/(\w+_test)\.py::(\w+)", path.read_text()
        )
    }
    assert len(named) > 50
    for module in {module for module, _ in named}:
        tree = ast.parse((ROOT / "tests" / f"{module}.py").read_text())
        known = {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
        missing = {test for m, test in named if m == module} - known
        assert not missing, module


def test_files_that_pages_name_exist():
    made_by_runs = ("docs/_build",)
    for path in ALL:
        named = re.findall(
            r"`((?:docs|tests|tools|trainers|tfkfac|examples)/[\w./]+)`",
            path.read_text(),
        )
        for name in named:
            assert name in made_by_runs or (ROOT / name).exists(), (path, name)


def test_pictures_of_pages_exist_and_have_a_text():
    for path in PAGES:
        pictures = re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", path.read_text())
        for text, target in pictures:
            assert text, (path, target)
            assert (path.parent / target).exists(), (path, target)


def test_the_pictures_of_convolutions_are_those_of_the_program():
    for name, draw in convolution_pictures.PICTURES.items():
        kept = (ROOT / "docs" / "convolutions" / name).read_text()
        assert kept == draw(), "run python -m tools.convolution_pictures"


def test_the_readme_is_a_front_page():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_glossary_has_the_letters():
    terms = re.findall(
        r"^(\S.*)\n: ", (ROOT / "docs/glossary.md").read_text(), re.MULTILINE
    )
    for letter in "AGVUDNR":
        assert f"**{letter}**" in terms


def public_docstrings():
    """(name, object) of what the library exports, with its members."""
    for name in tfkfac.__all__:
        of = getattr(tfkfac, name)
        yield name, of
        for kind in inspect.getmro(of) if inspect.isclass(of) else ():
            if kind.__module__.startswith("tfkfac."):
                for member, value in vars(kind).items():
                    if not member.startswith("_"):
                        yield f"{kind.__name__}.{member}", value


def test_a_colon_of_a_docstring_does_not_make_a_type():
    """Sphinx takes what stands before one for the type of what is returned, or
    of a property."""
    found = set()
    for name, of in public_docstrings():
        text = inspect.getdoc(of) or ""
        first = [text.partition("\n")[0]] if isinstance(of, property) else []
        first += re.findall(r"^Returns:\n(.*)", text, re.MULTILINE)
        if any(":" in re.sub("`.*?`", "", line) for line in first):
            found.add(name)
    assert found == set()


def test_functions_say_what_they_return():
    exported = [(name, getattr(tfkfac, name)) for name in tfkfac.__all__]
    silent = [
        name
        for name, of in exported
        if inspect.isfunction(of)
        and inspect.signature(of).return_annotation is not None
        and not re.search("[Rr]eturns", inspect.getdoc(of) or "")
    ]
    assert silent == []
