"""The studies of the benchmark in seconds: arms, settings and parts."""

import inspect

import keras
import pytest

import tfkfac
from tfkfac import auto_damping
from tools.time_to_target import optimizers, studies, summaries, tasks


def test_each_peer_has_sixteen_settings_and_kfac_as_it_comes_one():
    arms = studies.STUDIES["peers"].arms
    assert arms["kfac"].settings == ({},)
    counts = {n: len(arm.settings) for n, arm in arms.items() if n != "kfac"}
    assert set(counts.values()) == {16}
    assert optimizers.PEERS.keys() == arms.keys() - {"kfac", "kfac_tuned"}
    adam = studies.STUDIES["after_steps"].arms["adam"]
    assert len(adam.settings) == 12


@pytest.mark.parametrize("name", studies.STUDIES)
def test_studies_name_what_there_is(name):
    """Every argument is one of the optimizer's, every task one of `TASKS`."""
    study = studies.STUDIES[name]
    assert set(study.tasks) <= tasks.TASKS.keys() and study.tasks
    assert study.steps is None or set(study.tasks) <= study.steps.keys()
    for arm in study.arms.values():
        assert arm.beside is None or len(study.arms[arm.beside].settings) == 1
        keys = {key for setting in arm.settings for key in setting}
        makers = {"kfac": tfkfac.KFAC, **optimizers.PEERS}
        own = {"only", "growing", "late"}
        own = own if arm.optimizer == "kfac" else {"schedule"}
        maker = inspect.signature(makers[arm.optimizer])
        assert keys <= maker.parameters.keys() | own
    assert summaries.SUMMARIES.keys() <= studies.STUDIES.keys()


@pytest.mark.parametrize("optimizer", studies.DEFAULTS)
def test_defaults_are_those_of_the_constructors(optimizer):
    maker = {"kfac": tfkfac.KFAC, "adam": keras.optimizers.Adam}[optimizer]
    arguments = inspect.signature(maker).parameters
    for name, value in studies.DEFAULTS[optimizer].items():
        default = arguments[name].default
        assert default == value or isinstance(default, str), name
        arms = studies.STUDIES["robustness"].arms
        less, more = (
            arms[f"{optimizer} {name} {sign}"].settings[0][name]
            for sign in ("/3", "x3")
        )
        if 0.5 < value < 1:  # Of an average: the steps that it is over.
            less, value, more = (1 / (1 - x) for x in (less, value, more))
            assert less == pytest.approx(value / 3, rel=1e-4)
            assert more == pytest.approx(3 * value, rel=2e-3)
        else:
            assert less == pytest.approx(value / 3, rel=1e-4)
            assert more == pytest.approx(
                5 / 6 if name == "momentum" else 3 * value, rel=1e-4
            )
    assert studies.DEFAULTS["kfac"]["damping"] == auto_damping.DAMPING
    for sign, times in (("/3", 1 / 3), ("x3", 3)):
        (setting,) = arms[f"kfac damping {sign}"].settings
        assert setting == {
            "damping": pytest.approx(times * 1e-4, rel=1e-4),
            "embedding_damping": pytest.approx(times * 3e-6, rel=1e-4),
        }


def test_a_part_of_a_study():
    found = studies.part("tied", optimizers=["adam"], steps=4, seeds=["5"])
    assert list(found.arms) == ["adam"] and found.seeds == (5,)
    assert found.after("pydocs") == 4
    found = studies.part("peers", tasks=["digits_cnn_512"], stay=True)
    assert found.tasks == ("digits_cnn_512",) and found.stay
    assert found.arms == studies.STUDIES["peers"].arms


@pytest.mark.parametrize(
    "name, given, message",
    [
        ("peers", {"tasks": ["mnist"]}, "tasks: mnist is none of"),
        ("tied", {"tasks": ["gru"]}, "tasks: gru is none of pydocs"),
        ("peers", {"optimizers": ["sgd"]}, "sgd is none of kfac, kfac_tuned"),
        ("peers", {"optimizers": []}, "nothing is none of"),
        (
            "robustness",
            {"optimizers": ["kfac damping x3"]},
            "is measured by kfac",
        ),
        ("peers", {"steps": 5}, "steps: peers runs to targets"),
        ("tied", {"stay": True}, "stay: tied has no targets"),
        ("peers", {"seeds": ["0", "100"]}, "100 is that of the search"),
        ("peers", {"seeds": ["-1"]}, "seeds=-1: give whole numbers"),
    ],
)
def test_what_there_is_not_is_named(name, given, message):
    with pytest.raises(ValueError, match=message):
        studies.part(name, **given)
