"""What the health of K-FAC calls for: sentences that name layers and mends."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from tfkfac.blocks.factored import MAX_FAILURES
from tfkfac.inversion import MAX_ROUNDING

MOVED = 0.5  # Since its inversion, relative; a factor with more is named.
CLIPPED = 0.9  # Of the updates; a clip that shortens more never lets go.
ENOUGH = 20  # Updates, before which the clip is not judged.

Record = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that is wrong, or worth a look.

    Attributes:
        kind: A word for it, the same from record to record.
        what: A sentence.
        layers: What is so in each layer, by its path; empty for the whole.
        mend: What to do.
        is_warning: Whether it is wrong; else it is a remark.
    """

    kind: str
    what: str
    layers: Mapping[str, str]
    mend: str
    is_warning: bool = True

    def sentence(self) -> str:
        """Returns all of it in one line."""
        named = [f"{k} ({v})" if v else k for k, v in self.layers.items()]
        where = f" Layers: {', '.join(named)}." if named else ""
        return f"{self.what}{where} {self.mend}"


def findings(last: Record) -> list[Finding]:
    """Returns what the last record of `tfkfac.callbacks.Health` calls for.

    Layers are judged as they are then, the clip by all updates, skipped updates
    and failed inversions by their numbers so far.
    """
    found = [_skipped(last), _clip(last), _uncovered(last)]
    for kind, judge, what, mend in _OF_LAYERS:
        layers = {
            path: detail
            for path, layer in last["layers"].items()
            if (detail := judge(layer)) is not None
        }
        if layers:
            found.append(Finding(kind, what, layers, mend))
    known = [x for x in found if x is not None]
    return sorted(known, key=lambda x: not x.is_warning)


# The whole.


def _skipped(last: Record) -> Finding | None:
    if not last["skipped"]:
        return None
    tried = last["update"] + last["skipped"]
    return Finding(
        "skipped updates",
        f"{last['skipped']} of {tried} updates were skipped: their gradients "
        "held NaN or infinity, or a schedule or the learning rate did.",
        {},
        "Look for such values in the data and the schedules, or lower the "
        "learning rate or raise the damping.",
    )


def _clip(last: Record) -> Finding | None:
    updates, clipped = (last["so_far"][k] for k in ("updates", "clipped"))
    if updates < ENOUGH or clipped <= CLIPPED * updates:
        return None
    what = f"The KL clip shortened {clipped} of {updates} updates"
    if last["kl_clip_adapts"]:
        return Finding(
            "KL clip",
            f"{what}: the bound that adapts sets the length of the steps, and "
            "the learning rate does not.",
            {},
            'This is what kl_clip="auto" is for; for the rate to have a say, '
            "lower it until the coefficient reaches 1.",
            is_warning=False,
        )
    return Finding(
        "KL clip",
        f"{what}: it never lets go, and the learning rate has no say.",
        {},
        'Raise kl_clip, lower the learning rate, or give kl_clip="auto".',
    )


def _uncovered(last: Record) -> Finding | None:
    if not last["uncovered"]:
        return None
    return Finding(
        "no curvature",
        f"Weights without a curvature block are updated by {last['fallback']}.",
        last["uncovered"],
        "Register a block for the layer (tfkfac.register, register_linear or "
        "register_scale), or name it in skip= if it is to stay so.",
    )


# Layers: each returns what is so, or None.


def _failed(layer: Record) -> str | None:
    if not layer["failed"]:
        return None
    in_a_row = layer["failed_in_a_row"]
    what = f"{layer['failed']} failed"
    if in_a_row:
        what += f", the last {in_a_row} in a row"
    if in_a_row >= MAX_FAILURES:
        what += "; the plain gradient is taken"
    return what


def _silent(layer: Record) -> str | None:
    factors = layer["factors"]
    if all(factor["silent"] is None for factor in factors.values()):
        return None if layer["failed"] else "no call of it counted so far"
    for name, factor in factors.items():
        size, silent = factor["side"] * factor["groups"], factor["silent"]
        if silent is None:
            continue
        if name.endswith("input_factor"):
            if silent >= size - factor["ones"] > 0:
                return "its inputs are always 0"
        elif silent == size:
            return "no gradient reaches it"
        elif 2 * silent > size:
            return f"{silent} of its {size} outputs get no gradient"
    return None


def _too_few(layer: Record) -> str | None:
    short = [
        (name, factor)
        for name, factor in layer["factors"].items()
        if layer["examples"] is not None
        and not factor["diagonal"]
        and layer["examples"] < factor["side"]
        and (factor["rank"] is None or factor["rank"] < factor["side"])
    ]
    if not short:
        return None
    name, factor = max(short, key=lambda item: item[1]["side"])
    rank = "" if factor["rank"] is None else f", rank {factor['rank']}"
    return (
        f"{_words(name)}: side {factor['side']}{rank}, about "
        f"{layer['examples']:.0f} examples"
    )


def _rounding(layer: Record) -> str | None:
    if layer["rounding"] is None or layer["rounding"] <= MAX_ROUNDING:
        return None
    return (
        f"condition {layer['condition'] or 0:.0e}, rounding may change U by "
        f"{100 * min(layer['rounding'], 1):.0f} %"
    )


def _moved(layer: Record) -> str | None:
    moved = {
        name: factor["movement"]
        for name, factor in layer["factors"].items()
        if (factor["movement"] or 0) > MOVED
    }
    if not moved or not layer["age"]:
        return None
    name = max(moved, key=lambda x: moved[x])
    part = f"{100 * moved[name]:.0f} %"
    return f"{_words(name)} moved by {part} in {layer['age']} updates"


def _words(name: str) -> str:
    return name.replace("_", " ")


_OF_LAYERS: list[tuple[str, Callable[[Record], str | None], str, str]] = [
    (
        "failed inversions",
        _failed,
        "Inversions failed.",
        "Raise the damping, or look for infinities in the inputs.",
    ),
    (
        "silent layers",
        _silent,
        "Layers, or most of their outputs, do not fire, and do not learn.",
        "Look at the initialization, at dead activations (lower the learning "
        "rate) and at whether the loss depends on the layer.",
    ),
    (
        "rounding",
        _rounding,
        "The damping is below the rounding of the factors.",
        "Raise the damping, center or normalize the inputs of the layer, or "
        'call keras.config.set_floatx("float64") before all else.',
    ),
    (
        "few examples",
        _too_few,
        "Factors are of fewer examples than they have rows.",
        "Raise the batch size or gradient_accumulation_steps, bring "
        "factor_decay nearer to 1, or raise the damping.",
    ),
    (
        "moved factors",
        _moved,
        "Factors have moved since they were inverted.",
        'Lower inverse_update_period, or give refresh="drift".',
    ),
]
