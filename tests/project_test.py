"""The project's own files: lengths, names, what is private in Keras."""

import ast
import collections
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def test_another_backend_is_refused_in_one_sentence():
    program = (
        "import keras; keras.backend.backend = lambda: 'jax'; import tfkfac"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    last = run.stderr.strip().splitlines()[-1]
    assert run.returncode != 0
    assert last.startswith("ImportError: tfkfac needs Keras' TensorFlow")
    assert "'jax'" in last and "KERAS_BACKEND=tensorflow" in last


def test_the_library_knows_no_flags_and_no_data_sets():
    for path in (ROOT / "tfkfac").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [a.name for a in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{a.name}" for a in node.names]
            for name in names:
                assert not name.startswith(
                    ("absl.flags", "tensorflow_datasets")
                )


def test_modules_are_read_in_one_sitting():
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for path in (ROOT / "tfkfac").rglob("*.py")
    }
    assert {k: n for k, n in lengths.items() if n > 350} == {}


def test_what_is_private_in_keras_is_in_one_module():
    """A release of Keras that changes it touches `keras_compat` alone."""
    private = re.compile(
        r"keras\.src|__dict__|\b(model|layer|loss|compile_loss|variable)\._\w"
    )
    found = {
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in (ROOT / "tfkfac").rglob("*.py")
        for line in path.read_text().splitlines()
        if path.name != "keras_compat.py" and private.search(line)
    }
    assert found == set()


def test_each_module_has_a_test_of_its_name():
    """`<module>_test.py`, or `<package>_<module>_test.py`; of modules of one
    name only the second tells whose it is."""
    tests = {path.name for path in (ROOT / "tests").glob("*_test.py")}
    modules = [
        path
        for path in (ROOT / "tfkfac").rglob("*.py")
        if path.stem != "__init__"
    ]
    number = collections.Counter(path.stem for path in modules)
    missing = []
    for path in modules:
        names = {f"{path.parent.name}_{path.stem}_test.py"}
        if number[path.stem] == 1:
            names.add(f"{path.stem}_test.py")
        if not names & tests:
            missing.append(str(path.relative_to(ROOT)))
    assert missing == []
