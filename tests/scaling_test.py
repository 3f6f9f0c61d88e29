"""The prediction of the time of a step on many ranks."""

import pytest

from tfkfac.distributed import assignment
from tools import image_models, scaling_prediction
from tools.scaling_prediction import Machine


def predict(ranks, machine=None, **options):
    items = [assignment.factored_item([(1, 10, False)], 10)] * 4
    return scaling_prediction.predict(
        items, 100.0, 50.0, ranks, machine or Machine(), 8, **options
    )


def test_one_rank_by_hand():
    machine = Machine(flops=2.0, inversion_flops=4.0)
    found = predict(1, machine, inverse_update_period=10)
    assert found["forward_and_backward"] == 6 * 100 * 8 / 2
    assert found["factors"] == 2 * 50 * 8 / 2
    assert found["inversion"] == pytest.approx(2 * 4 * 1000 / 4 / 10)
    assert found["preconditioning"] == 2 * 4 * 100 / 2
    assert found["communication"] == 0


def test_two_ranks_by_hand():
    machine = Machine(bandwidth=8.0, latency=0.5)
    found = predict(2, machine)
    # V, the factors' triangles, and U: a message each, float32.
    sent = 4 * 20 + 4 * 2 * 55 + 4 * 20
    assert found["communication"] == pytest.approx(3 * 0.5 + sent / 8)
    one = predict(1, machine)
    assert found["inversion"] == one["inversion"] / 2
    assert found["step"] == pytest.approx(sum(list(found.values())[:-1]))


def test_resnet50_is_that_of_the_paper():
    """3.8 G multiplications forward (He et al. 2015), 107 layers."""
    model = image_models.build_model("resnet50")[0]
    found = image_models.register(model)
    forward = scaling_prediction.forward_cost(found.blocks)
    assert forward == pytest.approx(3.86e9, rel=0.01)
    assert len(found.blocks) == 107 and not found.fallback
    # Section 5.4: the factors with diagonal and with full curvature of norms.
    assert round(image_models.state_mib(found)["factors"]) == 587
    full = image_models.register(model, "full")
    assert round(image_models.state_mib(full)["factors"]) == 1017
