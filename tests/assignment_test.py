"""Who owns what: `assignment`, against brute force and its bounds."""

import itertools
import random

import pytest

from tfkfac.distributed import assignment
from tools import image_models


def items(seed, count):
    rng = random.Random(seed)
    return [
        assignment.factored_item(
            [(1, rng.randint(1, 40), False), (1, rng.randint(1, 40), False)],
            rng.randint(1, 900),
        )
        for _ in range(count)
    ]


def slowest(of_items, owners, ranks):
    loads = assignment.loads(of_items, owners, ranks)
    return max(load["inversion"] for load in loads)


@pytest.mark.parametrize("seed", range(5))
def test_inversions_are_split_nearly_as_well_as_can_be(seed):
    """Against all ways to split 8 items over 3 ranks."""
    of_items = items(seed, 8)
    best = min(
        slowest(of_items, owners, 3)
        for owners in itertools.product(range(3), repeat=8)
    )
    found = slowest(of_items, assignment.assign(of_items, 3), 3)
    assert assignment.bounds(of_items, 3)["inversion"] <= best <= found
    assert found <= 1.25 * best


@pytest.mark.parametrize("count, ranks", [(5, 64), (64, 5), (1, 1), (0, 3)])
def test_more_ranks_than_items_and_more_items_than_ranks(count, ranks):
    of_items = items(0, count)
    owners = assignment.assign(of_items, ranks)
    assert owners == assignment.assign(list(of_items), ranks)
    assert len(owners) == count and set(owners) <= set(range(ranks))
    assert len(set(owners)) == min(count, ranks)
    loads = assignment.loads(of_items, owners, ranks)
    for name in ("inversion", "memory", "gradient"):
        total = sum(getattr(i, name) for i in of_items)
        assert sum(load[name] for load in loads) == total


def test_item_of_a_factored_block():
    """Two groups of dense factors of 3, one diagonal factor of 5."""
    item = assignment.factored_item([(2, 3, False), (1, 5, True)], 30)
    assert item.inversion == 2 * 27 + 5
    assert item.memory == 2 * (2 * 9 + 5)
    assert item.statistics == 2 * 6 + 5
    assert item.preconditioning == 30 * 3 + 30
    assert item.gradient == 30


def test_an_all_reduce_replaces_a_reduction_in_unequal_parts():
    assert assignment.scatters([1, 1, 1, 1])
    assert assignment.scatters([2, 2, 0, 0])
    assert not assignment.scatters([3, 1, 0, 0])


@pytest.fixture(scope="module")
def resnet50():
    model = image_models.build_model("resnet50")[0]
    return image_models.items_of(image_models.register(model))


@pytest.mark.parametrize("ranks", [2, 4, 8, 16, 32, 64])
def test_resnet50(resnet50, ranks):
    owners = assignment.assign(resnet50, ranks)
    loads = assignment.loads(resnet50, owners, ranks)
    bounds = assignment.bounds(resnet50, ranks)
    most = {key: max(load[key] for load in loads) for key in bounds}
    assert most["inversion"] <= 1.1 * bounds["inversion"]
    total = sum(i.memory for i in resnet50)
    largest = max(i.memory for i in resnet50)
    assert most["memory"] <= 1.15 * total / ranks + largest
