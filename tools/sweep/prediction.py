"""What the noisy quadratic model says of a study.

Its curvature and gradient noise are those that tools.spectra has measured of a
model: v^T F v and the variance along some Kronecker eigenvectors of each layer,
interpolated between their ranks. All coordinates start at the same distance
from the minimum, such that the loss there is the one before training, and the
minimum has no loss. Zhang et al. 2019 preconditions with H^p; K-FAC's damped
inverse is taken as what it is for a diagonal curvature, 1 / (h + lambda).
"""

import dataclasses
import math

import numpy as np

from tools.quadratic import search
from tools.quadratic import study as quadratic
from tools.quadratic.model import NoisyQuadratic
from tools.sweep.analysis import Result

POINTS = 60  # Of each layer's spectrum.
# From an arm to the optimizer of the model, and whether it is preconditioned.
KNOWN = {
    "sgd": ("sgd", False),
    "momentum": ("momentum", False),
    "ema": ("ema", False),
    "kfac": ("momentum", True),
    "kfac_without_momentum": ("sgd", True),
}


def measured(spectra: dict, loss: float) -> NoisyQuadratic:
    """Returns the model of a spectra.json.

    Args:
        spectra: What tools.spectra writes.
        loss: That before training, in nats.

    Raises:
        ValueError: There is no direction with curvature.
    """
    parts = []
    for layer in spectra["layers"]:
        found = [
            d
            for d in spectra["directions"]
            if d["layer"] == layer["layer"]
            and d["curvature"] > 0
            and d["variance"] > 0
        ]
        if found:
            parts.append(_of_layer(layer["positive"], found))
    if not parts:
        raise ValueError("no direction has curvature and gradient noise")
    h, c, count = np.concatenate(parts, axis=1)
    order = np.argsort(-h)
    h, c, count = h[order], c[order], count[order]
    moment = np.full_like(h, 2 * loss / (h @ count))
    return NoisyQuadratic(curvature=h, noise=c, moment=moment, count=count)


def _of_layer(dimension, directions):
    """Returns [h, c, how many coordinates] at some ranks of a layer."""
    edges = np.unique(
        np.geomspace(1, dimension + 1, POINTS + 1).round().astype(int)
    )
    count = np.diff(edges)
    rank = np.sqrt(edges[:-1] * np.maximum(edges[1:] - 1, 1))
    at = np.log([d["rank"] for d in directions])
    values = [
        np.exp(np.interp(np.log(rank), at, np.log([d[k] for d in directions])))
        for k in ("curvature", "variance")
    ]
    return np.stack([*values, count])


def preconditioned(model: NoisyQuadratic, damping: float) -> NoisyQuadratic:
    """Returns the model in which SGD is SGD preconditioned by (H + lambda)^-1.

    As `NoisyQuadratic.preconditioned`, with h + lambda in the place of h^p.
    """
    scale = model.curvature + damping
    return dataclasses.replace(
        model,
        curvature=model.curvature / scale,
        noise=model.noise / scale,
        moment=model.moment * scale,
    )


def steps(
    model: NoisyQuadratic,
    found: list[Result],
    target: float,
    noise_exponent: float = 0.0,
) -> dict[str, dict[int, int | None]]:
    """Returns the predicted steps by arm and batch size.

    Of the arms of `KNOWN` at the batch sizes of the results; None where the
    target is out of the model's reach. K-FAC's damping is the geometric mean of
    the best ones.

    Args:
        model: The model.
        found: The results.
        target: The loss to reach.
        noise_exponent: The noise falls as this power of the loss.
    """
    predicted = {}
    for label in dict.fromkeys(r.label for r in found):
        if label not in KNOWN:
            continue
        optimizer, is_kfac = KNOWN[label]
        of_arm = [r for r in found if r.label == label and r.best]
        of_model = model
        if is_kfac:
            logs = [math.log(r.best["settings"]["damping"]) for r in of_arm]
            of_model = preconditioned(model, math.exp(np.mean(logs)))
        predicted[label] = {
            r.batch_size: _steps(
                of_model, optimizer, r.batch_size, target, noise_exponent
            )
            for r in of_arm
        }
    return predicted


def _steps(model, optimizer, batch_size, target, noise_exponent):
    question = quadratic.Question(
        model, optimizer, 0.0, batch_size, target,
        noise_exponent=noise_exponent,
    )  # fmt: skip
    try:
        return quadratic.answer(question)["steps"]
    except search.UnreachableError:
        return None
