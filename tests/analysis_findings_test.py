"""What records call for."""

import json

import pytest

from tfkfac.analysis.findings import findings

FACTOR = {
    "side": 8,
    "groups": 1,
    "diagonal": False,
    "ones": 0,
    "rank": 8,
    "silent": 0,
    "condition": 100.0,
    "damping": 0.1,
    "movement": 0.1,
}
LAYER = {
    "age": 3,
    "failed": 0,
    "failed_in_a_row": 0,
    "examples": 500.0,
    "rounding": 1e-4,
    "pi": 1.0,
    "relative_damping": 0.1,
    "share": 0.5,
    "step": 0.5,
    "rank": 0,
    "condition": 100.0,
    "movement": 0.1,
    "factors": {
        "input_factor": FACTOR | {"ones": 1},
        "output_factor": FACTOR,
    },
}


UNKNOWN = {name: {"silent": None, "rank": None} for name in LAYER["factors"]}


def healthy(update=100, **changes):
    record = {
        "update": update,
        "epoch": 1,
        "model": "model",
        "ranks": 1,
        "metrics": {"loss": 1.0},
        "learning_rate": 0.1,
        "damping": 1e-3,
        "kl_clip": 1e-3,
        "kl_clip_adapts": False,
        "clip": 0.9,
        "skipped": 0,
        "updates": 100,
        "clipped": 10,
        "so_far": {"updates": update, "clipped": 10},
        "stages": {"first": [1, 2.0], "plain": [99, 1.0]},
        "health_seconds": 0.01,
        "fallback": "Adam",
        "uncovered": {},
        "layers": {"conv": LAYER, "dense": LAYER},
    }
    return json.loads(json.dumps(record | changes))  # Nothing is shared.


def test_a_healthy_run_calls_for_nothing():
    assert findings(healthy()) == []


@pytest.mark.parametrize(
    "kind, changes, of_factor, words, mend",
    [
        ("failed inversions", {"failed": 2, "failed_in_a_row": 0}, {},
         "2 failed", "Raise the damping"),
        ("failed inversions", {"failed": 7, "failed_in_a_row": 5}, {},
         "7 failed, the last 5 in a row; the plain gradient", "Raise the damp"),
        ("silent layers", {}, UNKNOWN, "no call of it", "depends"),
        ("silent layers", {}, {"input_factor": {"silent": 7}},
         "its inputs are always 0", "initialization"),
        ("silent layers", {}, {"input_factor": {"silent": 8, "ones": 0}},
         "its inputs are always 0", "initialization"),
        ("silent layers", {},
         {"input_factor": {"silent": 6, "ones": 2, "side": 4, "groups": 2}},
         "its inputs are always 0", "initialization"),
        ("silent layers", {}, {"output_factor": {"silent": 1, "side": 1}},
         "no gradient reaches it", "initialization"),
        ("silent layers", {}, {"output_factor": {"silent": 8}},
         "no gradient reaches it", "initialization"),
        ("silent layers", {}, {"output_factor": {"silent": 5}},
         "5 of its 8 outputs get no gradient", "learning rate"),
        ("rounding", {"rounding": 0.2}, {},
         "condition 1e+02, rounding may change U by 20 %", "float64"),
        ("few examples", {"examples": 5.0}, {"input_factor": {"rank": 4}},
         "input factor: side 8, rank 4, about 5 examples", "batch size"),
        ("few examples", {"examples": 5.0}, {"output_factor": {"rank": None}},
         "output factor: side 8, about 5 examples", "factor_decay"),
        ("moved factors", {"age": 40}, {"output_factor": {"movement": 0.7}},
         "output factor moved by 70 % in 40 updates", "inverse_update"),
    ],
)  # fmt: skip
def test_a_layer_is_named_with_the_mend(kind, changes, of_factor, words, mend):
    record = healthy()
    record["layers"]["dense"] |= changes
    for name, values in of_factor.items():
        record["layers"]["dense"]["factors"][name] |= values
    (found,) = findings(record)
    assert found.kind == kind and found.is_warning
    assert list(found.layers) == ["dense"] and words in found.layers["dense"]
    assert mend in found.mend
    assert "dense (" in found.sentence() and "conv" not in found.sentence()


def test_what_is_as_it_should_be_is_not_named():
    record = healthy()
    dense = record["layers"]["dense"]
    # Few examples, and yet of full rank; half of the inputs silent; a factor
    # that has moved and was inverted in the last update.
    dense |= {"examples": 5.0, "age": 0}
    dense["factors"]["input_factor"] |= {"silent": 5}
    dense["factors"]["output_factor"] |= {"movement": 3.0}
    assert findings(record) == []
    # All inputs but one, of a layer without a bias; a decay that is NaN, with
    # which the number of examples is not known.
    dense["factors"]["input_factor"] |= {"silent": 7, "ones": 0}
    dense |= {"examples": None}
    assert findings(record) == []


def test_a_clip_that_never_lets_go():
    # By all updates together.
    record = healthy(200, so_far={"updates": 200, "clipped": 185})
    (found,) = findings(record)
    assert found.kind == "KL clip" and "185 of 200" in found.what
    assert found.is_warning and "Raise kl_clip" in found.mend
    record["kl_clip_adapts"] = True
    (found,) = findings(record)
    assert not found.is_warning and "lower it" in found.mend
    for updates, clipped in ((100, 90), (10, 10)):
        so_far = {"updates": updates, "clipped": clipped}
        assert findings(healthy(so_far=so_far)) == []


def test_skipped_updates_and_weights_without_a_block():
    record = healthy(skipped=4, uncovered={"own/w": "no curvature block"})
    skipped, uncovered = findings(record)
    assert skipped.what.startswith("4 of 104 updates were skipped")
    assert "Look for such values in the data" in skipped.mend
    assert uncovered.layers == {"own/w": "no curvature block"}
    assert "updated by Adam" in uncovered.what and "skip=" in uncovered.mend
