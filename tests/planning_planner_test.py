"""`tfkfac.plan`: the numbers of the paper, messages and the command."""

import json
import subprocess
import sys

import keras
import pytest
from keras import layers
from planned_models import dense, tokens

import tfkfac
from tools import image_models, scaling_prediction


def test_resnet50_is_that_of_the_paper():
    """Osawa et al. 2019, section 5.4: 1,017 and 587 MiB, 42.3 % less."""
    model = image_models.build_model("resnet50")[0]
    planned = tfkfac.plan(model)
    full = image_models.register(model, "full")
    state = image_models.state_mib(full)["factors"]
    assert round(state) == 1017
    assert round(planned.dense_bytes / 2**20) == 587
    less = 1 - planned.dense_bytes / 2**20 / state
    assert round(100 * less, 1) == 42.3
    found = image_models.register(model)
    items = image_models.items_of(found)
    assert planned.packed_bytes == sum(4 * i.statistics for i in items)
    assert len(planned.layers) == 107
    # 3 F, but for the gradient with respect to the images.
    forward = scaling_prediction.forward_cost(found.blocks)
    stem = 112 * 112 * 7 * 7 * 3 * 64
    expected = 2 * 32 * (3 * forward - stem)
    assert planned.step("gradient").flops == expected


def test_bad_arguments_are_named():
    class Unknown(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(TypeError, match="not a keras.Model"):
        tfkfac.plan("resnet50")
    with pytest.raises(ValueError, match="not built"):
        tfkfac.plan(keras.Sequential([layers.Dense(2)]))
    with pytest.raises(ValueError, match="inputs=tf.TensorSpec"):
        tfkfac.plan(tokens())
    for settings in (
        {"ranks": 0},
        {"ranks": 1.5},
        {"batch_size": -1},
        {"inverse_update_period": 0},
        {"strategy": "shared"},
        {"norm_curvature": "half"},
        {"inverter": "qr"},
        {"fisher": "exact"},
        {"skip": "first"},
        {"budget": 0},
        {"budget": -0.1},
        {"budget": float("nan")},
        {"max_factor_size": 0},
    ):
        (name,) = settings
        with pytest.raises(ValueError, match=f"{name}="):
            tfkfac.plan(dense(), **settings)
    with pytest.raises(ValueError, match="do not divide 4 ranks"):
        tfkfac.plan(dense(), ranks=4, strategy=3)
    with pytest.raises(ValueError, match="no layer 'third'"):
        tfkfac.plan(dense(), skip=["third"])


def test_command():
    command = [sys.executable, "-m", "tools.plan", "--model=transformer",
               "--vocabulary=50", "--length=4", "--ranks=2", "--budget=0.5",
               "--batch_size=4096", "--json"]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True)
    found = json.loads(run.stdout)
    assert [row["ranks"] for row in found["shares"]] == [2]
    planned = found["plan"]
    assert planned["settings"]["budget"] == 0.5 and planned["suggested"]
    assert planned["layers"][0]["block"] == "TiedEmbeddingBlock"
    by_kind = {s["kind"]: s for s in planned["steps"]}
    assert by_kind["plain"]["sent"] < by_kind["factors"]["sent"]
    factors = [row["factors, MiB"] for row in found["storage"]]
    assert factors[0] <= factors[1] < factors[2]


def test_moments_of_adam_count():
    """Two, beside the weights of their averages and a rate."""
    model = dense()
    first, without = (
        tfkfac.plan(model, skip=["first"], fallback=fallback)
        for fallback in ("adam", "gradient")
    )
    curvature = tfkfac.KFAC(model=model, skip=["first"]).curvature
    found = first.momentum_bytes - without.momentum_bytes
    assert found == curvature.nbytes("first/")
