"""`plan`: what K-FAC would take of a model in memory, messages and FLOPs."""

import math
import numbers
from collections.abc import Sequence
from typing import Any

import keras

from tfkfac import factor_sizes, inverters, registry, settings
from tfkfac.blocks import CurvatureBlock
from tfkfac.distributed import assignment, packing
from tfkfac.estimator import state_dtype
from tfkfac.planning import inputs as batch
from tfkfac.planning import symbolic, traffic
from tfkfac.planning.periods import Overheads
from tfkfac.planning.records import LayerPlan, Plan, RankPlan, StepPlan
from tfkfac.schedules import is_number

# FLOPs of an inversion over n^3, and of U over n m (n + m). Eigenvalues and
# vectors take about 9 n^3 (Golub and Van Loan, section 8.3), U four products.
_FLOPS = {"cholesky": (2, 2), "eigen": (9, 4)}
_FALLBACKS = {"adam": "Adam", "gradient": "plain gradient"}
_COUNTS = ("batch_size", "ranks", "factor_update_period",
           "inverse_update_period")  # fmt: skip


def plan(
    model: keras.Model,
    *,
    batch_size: int = 32,
    ranks: int = 1,
    strategy: str | int = "owner",
    factor_update_period: int = 1,
    inverse_update_period: int = 10,
    budget: float | None = None,
    fisher: str = "sampled",
    inverter: str = "cholesky",
    norm_curvature: str = "diagonal",
    tied: str = "pooled",
    max_factor_size: int | None = factor_sizes.DEFAULT,
    skip: Sequence[str] = (),
    communication_dtype: str = "float32",
    fallback: str = "adam",
    inputs: Any = None,
) -> Plan:
    """Returns what `tfkfac.KFAC` would take of a model, without training it.

    FLOPs are those of the matrix products and convolutions in the graph of a
    step, 2 m n k for each product, and of

        inversions         2 n^3 for a factor of side n ("eigen": 9 n^3)
        preconditioning    2 n m (n + m) for an n x m gradient ("eigen": twice)

    The overhead is their ratio, as if all ran at one speed and what else a step
    does (normalizations, copies, messages between ranks) took no time. State
    and messages are exact for refresh="periodic" without gradient accumulation,
    but for a byte of state that is of no layer.

    Args:
        model: A built model, attached to an optimizer or not. It is not run
            and stays as it is.
        batch_size: The examples of each rank.
        ranks: How many there are.
        factor_update_period, inverse_update_period: Those of `tfkfac.KFAC`, as
            numbers.
        strategy, fisher, inverter, norm_curvature, tied, skip, fallback: As of
            `tfkfac.KFAC`.
        max_factor_size, communication_dtype: Likewise.
        budget: The overhead to find periods for: 0.1 is a tenth more than the
            gradient step. Of what preconditioning leaves of it, factors and
            inversions get half each, or one period where inversions are the
            cheaper part.
        inputs: What the model takes, where sides other than the batch are open
            or the model cannot tell: anything with `shape` and `dtype`, such as
            `tf.TensorSpec([None, 64], "int32")`, nested likewise.

    Raises:
        TypeError: `model` is no Keras model.
        ValueError: It is not built, has open sides or nothing to count, or an
            argument is out of its range.
    """
    arguments = dict(locals())
    del arguments["model"], arguments["inputs"]
    _check(model, arguments)
    arguments["skip"] = list(skip)
    found = symbolic.trace(
        model,
        batch.specs(model, inputs, batch_size),
        inverters.get(inverter),
        lambda unusable: _register(model, arguments, unusable),
    )
    layers = _layers(found, arguments)
    of_ranks = _ranks(found, layers, arguments)
    overheads = _overheads(found, layers, of_ranks, arguments)
    dense, packed = factor_storage(found.registration.blocks)
    variables = model.trainable_variables
    return Plan(
        model=model.name,
        settings=arguments,
        parameters=sum(map(_size, variables)),
        dense_bytes=dense,
        packed_bytes=packed,
        momentum_bytes=sum(_size(v) * state_dtype(v).size for v in variables)
        + _adam_bytes(found.registration.fallback, fallback),
        layers=layers,
        ranks=of_ranks,
        steps=_steps(found.gradient, overheads, of_ranks),
        sampled_flops=found.sampled if fisher == "sampled" else 0,
        overhead=overheads.mean(factor_update_period, inverse_update_period),
        suggested=_suggested(overheads, budget),
        uncounted=found.uncounted,
    )


def factor_storage(blocks: Sequence[CurvatureBlock]) -> tuple[int, int]:
    """Returns the bytes of factors in float32: as squares, as triangles.

    Osawa et al. 2019, section 5.4, count the squares.
    """
    dense = packed = 0
    for factor in (f for block in blocks for f in block.factors):
        diagonal = factor.groups * factor.dim
        square = diagonal * (1 if factor.diagonal else factor.dim)
        dense += 4 * square
        packed += 2 * (square + diagonal)
    return dense, packed


def _check(model, arguments) -> None:
    """Raises TypeError or ValueError, which names what is wrong."""
    if not isinstance(model, keras.Model):
        raise TypeError(f"plan: {model!r} is not a keras.Model.")
    if not model.built:
        raise ValueError(
            f"plan: {model.name!r} is not built: call it on a batch, or "
            "model.build(input_shape), first."
        )
    for name in _COUNTS:
        value = arguments[name]
        if not isinstance(value, numbers.Integral) or value < 1:
            raise ValueError(
                f"plan({name}={value!r}): must be a positive integer."
            )
    choices = ("fisher", "norm_curvature", "tied", "communication_dtype",
               "fallback")  # fmt: skip
    settings.check(
        {name: arguments[name] for name in choices},
        strategy=arguments["strategy"],
        likelihood=None,
        skip=arguments["skip"],
        max_factor_size=arguments["max_factor_size"],
        drift_tolerance=0.0,
    )
    settings.group_size(arguments["strategy"], arguments["ranks"])
    if arguments["inverter"] not in _FLOPS:
        raise ValueError(
            f"plan(inverter={arguments['inverter']!r}): must be one of "
            f"{sorted(_FLOPS)}."
        )
    budget = arguments["budget"]
    if budget is not None and not (is_number(budget) and budget > 0):
        raise ValueError(
            f"plan(budget={budget!r}): must be a positive number, such as 0.1 "
            "for a tenth more than the gradient step."
        )


def _register(model, arguments, unusable) -> registry.Registration:
    options = {name: arguments[name] for name in ("norm_curvature", "tied")}
    found = registry.register_model(model, arguments["skip"], unusable, options)
    factor_sizes.limit(found.blocks, arguments["max_factor_size"])
    return found


def _size(variable) -> int:
    return math.prod(variable.shape)


def _adam_bytes(variables, fallback: str) -> int:
    """Returns the bytes of two moments, their weights and a rate of each."""
    sizes = [(2 * _size(v) + 3) * state_dtype(v).size for v in variables]
    return sum(sizes) if fallback == "adam" else 0


def _layers(found, arguments) -> list[LayerPlan]:
    """Returns the blocks, and what has none, with their owners."""
    blocks, alone = found.registration.blocks, found.registration.fallback
    items = assignment.model_items(blocks, alone)
    owners = assignment.assign(items, arguments["ranks"])
    inversion, preconditioning = _FLOPS[arguments["inverter"]]
    layers = [
        LayerPlan(
            path=block.path,
            block=type(block).__name__,
            factors=block.describe(),
            parameters=sum(map(_size, block.variables)),
            owner=owner,
            factor_bytes=costs.factor_bytes,
            inverse_bytes=costs.inverse_bytes,
            gradient_flops=costs.gradient,
            factor_flops=costs.factors,
            inversion_flops=int(inversion * item.inversion),
            preconditioning_flops=int(preconditioning * item.preconditioning),
        )
        for (block, costs), item, owner in zip(
            found.layers.items(), items, owners
        )
    ]
    name = _FALLBACKS[arguments["fallback"]]
    return layers + [
        LayerPlan(v.path, name, "", _size(v), owner)
        for v, owner in zip(alone, owners[len(blocks) :])
    ]


def _ranks(found, layers, arguments) -> list[RankPlan]:
    """Returns what each rank has, and what it sends."""
    ranks = arguments["ranks"]
    g = settings.group_size(arguments["strategy"], ranks)
    sent = _distributor(found, layers, g, arguments)

    def total(name, of_layers):
        return sum(getattr(layer, name) for layer in of_layers)

    result = []
    for rank in range(ranks):
        owned = [x for x in layers if x.owner == rank]
        held = [x for x in layers if x.owner // g == rank // g]
        result.append(
            RankPlan(
                rank=rank,
                factor_bytes=total("factor_bytes", owned),
                inverse_bytes=total("inverse_bytes", held),
                inversion_flops=total("inversion_flops", owned),
                preconditioning_flops=total("preconditioning_flops", held),
                sent={kind: of_kind[rank] for kind, of_kind in sent.items()},
            )
        )
    return result


def _distributor(
    found, layers, group_size, arguments
) -> dict[str, list[float]]:
    """Returns the bytes that each rank sends, by the kind of step."""
    parts, dtypes = [], [state_dtype(v) for v in found.registration.fallback]
    for block, costs in found.layers.items():
        moments = [
            s.groups * (s.dim if s.diagonal else s.dim * (s.dim + 1) // 2)
            for s in block.sums
        ]
        gradient = sum(map(_size, block.variables))
        parts.append(traffic.Part(gradient, moments, costs.inverse_elements))
        dtypes += map(state_dtype, block.variables)
    parts += map(traffic.Part, map(_size, found.registration.fallback))
    distributor = traffic.Traffic(
        parts,
        [layer.owner for layer in layers],
        arguments["ranks"],
        group_size,
        item_size=packing.widest(dtypes).size,
        half=arguments["communication_dtype"] == "float16",
    )
    return {kind: distributor.sent(kind) for kind in traffic.KINDS}


def _overheads(found, layers, ranks, arguments) -> Overheads:
    """Returns what the parts of a step cost, over the gradient step.

    Raises:
        ValueError: The gradient step has no products.
    """
    if not found.gradient:
        raise ValueError(
            "plan: no matrix product or convolution of this model could be "
            f"counted (left out: {found.uncounted}): nothing to compare with."
        )
    factors = sum(layer.factor_flops for layer in layers)
    if arguments["fisher"] == "sampled":
        factors += found.sampled
    return Overheads(
        max(r.preconditioning_flops for r in ranks) / found.gradient,
        factors / found.gradient,
        max(r.inversion_flops for r in ranks) / found.gradient,
    )


def _steps(gradient: int, overheads: Overheads, ranks) -> list[StepPlan]:
    """Returns the kinds of steps, forward and backward pass alone first."""
    by_kind = {
        "plain": overheads.plain,
        "factors": overheads.plain + overheads.factors,
        "factors and inverses": overheads.mean(1, 1),
    }
    steps = [StepPlan("gradient", gradient, 0.0)]
    for kind, overhead in by_kind.items():
        sent = [rank.sent[kind] for rank in ranks]
        flops = round(gradient * (1 + overhead))
        mean = sum(sent) / len(ranks)
        steps.append(StepPlan(kind, flops, overhead, mean, max(sent)))
    return steps


def _suggested(overheads: Overheads, budget: float | None) -> dict | None:
    """Returns the periods that meet a budget, if there are any."""
    periods = None if budget is None else overheads.suggest(budget)
    if periods is None:
        return None
    return {
        "factor_update_period": periods[0],
        "inverse_update_period": periods[1],
        "overhead": overheads.mean(*periods),
    }
