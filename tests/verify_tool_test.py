"""`python -m tools.verify`: its status, and what it refuses."""

import sys

import pytest
from absl import app, flags

import tfkfac
from tfkfac.attached_model import attached_to
from tools import verified_models, verify

MAKER = """
import classifier


def make():
    model, _ = classifier.compiled()
    return model, classifier.X, classifier.Y


def nothing():
    return 1
"""


def run(*arguments):
    """Returns the exit status."""
    flags.FLAGS.unparse_flags()
    with pytest.raises(SystemExit) as ended:
        app.run(verify.main, ["verify", "--nograph", *arguments])
    return ended.value.code


@pytest.fixture
def maker(tmp_path, monkeypatch):
    """A module in the working directory."""
    (tmp_path / "my_module.py").write_text(MAKER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    sys.modules.pop("my_module", None)


@pytest.fixture(autouse=True)
def unset_flags():
    yield
    flags.FLAGS["model"].value = flags.FLAGS["file"].value = None


def test_status_of_a_model_of_ones_own(maker, capsys, monkeypatch):
    assert run("--file=my_module:make") == 0
    assert "checks passed" in capsys.readouterr().out
    flags.FLAGS["file"].value = None
    exact = tfkfac.KroneckerBlock.output_moment

    def doubled(self, *arguments):
        return 2 * exact(self, *arguments)

    monkeypatch.setattr(tfkfac.KroneckerBlock, "output_moment", doubled)
    assert run("--file=my_module:make") == 1
    assert "2 times what it should be" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, text",
    [
        ([], "either --model"),
        (["--file=my_module"], "module:function"),
        (["--file=my_module:none"], "no attribute 'none'"),
        (["--file=my_module:nothing"], "must return"),
        (["--model=none"], "must be one of"),
    ],
)
def test_what_is_refused(maker, arguments, text):
    assert text in run(*arguments)


def test_models_are_compiled():
    for name in ("lstm", "small_cnn_bn", "small_transformer", "gan"):
        model, x, y = verified_models.make(name, 4)
        assert len(x) == 4 and (y is None or len(y) == 4)
        assert attached_to(model)
