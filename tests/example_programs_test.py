"""The programs of `examples/`: each runs, learns, and is short."""

import json
import pathlib
import runpy

import numpy as np
import pytest

EXAMPLES = pathlib.Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the `main` of an example in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def call(name, **arguments):
        return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](**arguments)

    return call


def test_each_has_at_most_80_lines():
    lengths = {
        path.name: len(path.read_text().splitlines())
        for path in EXAMPLES.glob("*.py")
    }
    assert len(lengths) == 6
    assert max(lengths.values()) <= 80, lengths


def test_fit(run, tmp_path):
    found = run("fit")
    assert found["accuracy"] > 0.9
    assert (tmp_path / "digits.keras").exists()


def test_custom_loop(run):
    found = run("custom_loop")
    assert found["last"] < 0.6 * found["first"]


def test_own_block(run):
    found = run("own_block")
    assert found["last"] < 0.6 * found["first"]
    assert found["verified"]


def test_several_processes(run, tmp_path):
    """On one process; `distributed_test` has ranks."""
    assert run("several_processes")["accuracy"] > 0.85
    assert (tmp_path / "ranks.keras").exists()


def test_gan(run):
    """Made points come to lie about the circle of radius 1."""
    found = run("gan")
    assert 0.7 < found["radius"] < 1.3
    assert found["deviation"] < 0.5


def test_language_model(run):
    found = run("language_model", epochs=1)
    assert found["last"] < 0.6 * np.log(128)


@pytest.mark.parametrize(
    "path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda p: p.name
)
def test_notebook(path, tmp_path, monkeypatch):
    """All cells, in their order."""
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "notebook"}
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), namespace)
    kfac, adam = namespace["losses"].values()
    assert kfac[-1] < kfac[0] and adam[-1] < adam[0]
