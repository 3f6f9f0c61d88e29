"""Runs a part of the tests with each supported version of Python, TF and Keras.

    python -m tools.version_matrix [--only=3.12]

`make test-matrix` runs it. It makes an environment for each row of `ROWS` in
--work_dir (about 1.5 GB each), where the interpreter is found on the PATH, runs
`TESTS` in it, and prints a table in Markdown, which `docs/install.md` has. The
exit status is 1 where a test has failed.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence

from absl import app, flags

_WORK = flags.DEFINE_string("work_dir", "runs/version_matrix", "Environments.")
_ONLY = flags.DEFINE_string("only", None, "The rows of this Python; all.")

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Python, TensorFlow, Keras.
ROWS = (
    ("3.11", "2.19.*", "3.12.*"),
    ("3.12", "2.20.*", "3.14.*"),
    ("3.13", "2.21.*", "3.15.*"),
)
# What of Keras and TensorFlow is not public; values against float64; layers of
# all kinds; files; training in all modes.
TESTS = (
    "versions_test",
    "keras_compat_test",
    "tensorflow_compat_test",
    "identities_test",
    "trajectory_test",
    "state_test",
    "modes_test",
    "own_test",
    "normalization_test",
    "recurrent_test",
    "embedding_test",
)
# Keras 3.12 itself differs: an activity regularizer is not divided by the
# examples; a masked loss is divided by its terms and 1e-7; what a
# ReversibleEmbedding gives in reverse has a mask, which its loss cannot take.
LEFT_OUT = {
    "3.12.*": (
        "trajectory_test.py::test_activity_regularizer",
        "recurrent_test.py::test_masks[True",
        "normalization_test.py::test_masked_statistics",
        "embedding_test.py::test_labels_of_tokens[True",
        "embedding_test.py::test_several_updates",
        "embedding_test.py::test_tied[True",
        "embedding_test.py::test_tied_float32",
        "embedding_test.py::test_tied_with_masked_lookups_only",
    )
}
NEEDED = (
    "numpy>=2",
    "absl-py",
    "hypothesis",
    "pytest",
    "scikit-learn",
    "scipy",
)


def environment(folder: pathlib.Path, row: Sequence[str]) -> str | None:
    """Makes the environment of a row; returns its Python, or None if none."""
    python, tensorflow, keras = row
    interpreter = shutil.which(f"python{python}")
    if interpreter is None:
        return None
    path = folder / f"python-{python}-tensorflow-{tensorflow[:4]}"
    own = str(path / "bin" / "python")
    if not (path / "ready").exists():
        subprocess.run([interpreter, "-m", "venv", str(path)], check=True)
        wanted = [f"tensorflow-cpu=={tensorflow}", f"keras=={keras}", *NEEDED]
        subprocess.run([own, "-m", "pip", "install", "-q", *wanted], check=True)
        (path / "ready").touch()
    return own


def run_tests(
    python: str, tests: Sequence[str], left_out: Sequence[str]
) -> tuple[str, bool]:
    """Returns the last line of pytest, and whether all have passed."""
    run = subprocess.run(
        [python, "-m", "pytest", "-p", "no:cacheprovider",
         *(f"tests/{name}.py" for name in tests),
         *(f"--deselect=tests/{name}" for name in left_out)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )  # fmt: skip
    counts = re.findall(r"^[^:\n]*\d+ (?:passed|failed).*", run.stdout, re.M)
    said = counts[-1] if counts else run.stderr[-200:]
    if run.returncode:
        print(run.stdout[-4000:], file=sys.stderr)
    return said.strip("= "), run.returncode == 0


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    passed = True
    print("| Python | TensorFlow | Keras | tests |\n| --- | --- | --- | --- |")
    for row in ROWS:
        if _ONLY.value not in (None, row[0]):
            continue
        python = environment(pathlib.Path(_WORK.value).resolve(), row)
        said, sound = f"no python{row[0]} on the PATH", True
        if python is not None:
            said, sound = run_tests(python, TESTS, LEFT_OUT.get(row[2], ()))
        passed = passed and sound
        print(f"| {' | '.join(row)} | {said} |", flush=True)
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    app.run(main)
