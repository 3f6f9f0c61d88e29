"""What a plan is made of, as plain data."""

import dataclasses
import json

import pytest
from planned_models import dense

import tfkfac


def test_a_plan_is_plain_data():
    planned = tfkfac.plan(dense(), ranks=2)
    found = json.loads(json.dumps(planned.to_dict()))
    assert found["layers"][0]["path"] == "first"
    assert [r["rank"] for r in found["ranks"]] == [0, 1]
    assert found["settings"]["inverse_update_period"] == 10
    for kind in ("gradient", "plain", "factors", "factors and inverses"):
        (step,) = [s for s in found["steps"] if s["kind"] == kind]
        assert dataclasses.asdict(planned.step(kind)) == step
    with pytest.raises(dataclasses.FrozenInstanceError):
        planned.parameters = 0
