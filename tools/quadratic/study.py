"""Steps to a target against batch size: what is asked, and the answers."""

import concurrent.futures
import dataclasses
import itertools
import os
from collections.abc import Iterator, Sequence

import threadpoolctl

from tools.quadratic import bounds, falling, schedule, search, tuning
from tools.quadratic.model import NoisyQuadratic

OPTIMIZERS = ("sgd", "momentum", "ema", "schedule")
MAX_STEPS = 10**10


@dataclasses.dataclass(frozen=True)
class Question:
    """One point of a curve: an optimizer, a power, a batch size, a target.

    Attributes:
        model: Before preconditioning.
        optimizer: One of `OPTIMIZERS`.
        power: p of the preconditioner H^p.
        batch_size: B.
        target: The risk to reach.
        momenta: The least and the largest momentum to try.
        max_steps: Where to give up.
        noise_exponent: The noise falls as this power of the risk; 0: it stays.
    """

    model: NoisyQuadratic
    optimizer: str
    power: float
    batch_size: int
    target: float
    momenta: tuple[float, float] = (0.0, tuning.MAX_MOMENTUM)
    max_steps: int = MAX_STEPS
    noise_exponent: float = 0.0


def check(question: Question) -> None:
    """Raises UnreachableError for a target that is seen to be out of reach."""
    start, target = question.model.initial_risk, question.target
    if not 0 < target < start:
        raise search.UnreachableError(
            f"target={target:g}: must be greater than 0 and less than "
            f"{start:.6g}, the risk before the first step."
        )
    if question.noise_exponent:
        return  # The bound is one of noise that stays.
    least = bounds.bayes(question.model, question.batch_size, target)
    if least > question.max_steps:
        raise search.UnreachableError(
            f"target={target:g}: no algorithm reaches it in less than "
            f"{least:.3g} steps of batch size {question.batch_size}, and "
            f"max_steps is {question.max_steps}; take a greater target, batch "
            "size or max_steps, or fewer dimensions."
        )


# With threads, SciPy's L-BFGS-B takes far longer on one or two variables.
@threadpoolctl.threadpool_limits.wrap(limits=1)
def answer(question: Question) -> dict:
    """Returns the least steps to the target, and with what they are reached.

    Returns:
        optimizer, power, batch_size, target, steps, the hyperparameters, the
        risk after these steps, and bound: the steps of the
        information-theoretic bound, for noise that stays.

    Raises:
        UnreachableError: The target cannot be reached; the message says why.
    """
    check(question)
    model = question.model.preconditioned(question.power)
    if question.noise_exponent:
        return _answer_falling(question, model)
    tuner = _tuner(question, model)
    bound = bounds.information(
        question.model, question.batch_size, question.target
    )
    guess = 2 * bound
    if question.optimizer == "schedule":
        # No constant rate is better; and the guess is close for large batches.
        constant = tuning.Tuner(tuning.sgd(), model, question.batch_size)
        guess = _search(constant.rough, question, guess, 1e-2)[0]
    guess = _search(tuner.rough, question, guess, 1e-3)[0]
    steps, risk, place = _search(tuner.best, question, guess)
    return {
        "optimizer": question.optimizer,
        "power": question.power,
        "batch_size": question.batch_size,
        "target": question.target,
        "steps": steps,
        **tuner.describe(place),
        "risk": risk,
        "bound": bound,
    }


def _answer_falling(question, model):
    steps, risk, settings = falling.least_steps(
        question.optimizer,
        model,
        question.batch_size,
        question.noise_exponent,
        question.target,
        question.momenta,
        min(question.max_steps, falling.MAX_STEPS),
    )
    names = "optimizer", "power", "batch_size", "target"
    asked = {name: getattr(question, name) for name in names}
    return {**asked, "steps": steps, **settings, "risk": risk}


def answers(
    questions: Sequence[Question], processes: int | None = None
) -> Iterator[dict]:
    """Yields the answers in order; all questions are checked before.

    Args:
        questions: What to answer.
        processes: How many to use, by default one for each core; 1 for this
            one alone, as befits a program with threads of its own.
    """
    for question in questions:
        check(question)
    processes = processes or len(os.sched_getaffinity(0))
    if processes == 1 or len(questions) == 1:
        yield from map(answer, questions)
        return
    with concurrent.futures.ProcessPoolExecutor(processes) as pool:
        yield from pool.map(answer, questions)


def questions(
    model: NoisyQuadratic,
    optimizers: Sequence[str],
    powers: Sequence[float],
    batch_sizes: Sequence[int],
    target: float,
    **options,
) -> list[Question]:
    """Returns a question for each combination, batch sizes innermost."""
    return [
        Question(model, optimizer, power, batch_size, target, **options)
        for optimizer, power, batch_size in itertools.product(
            optimizers, powers, batch_sizes
        )
    ]


def _tuner(question, model):
    if question.optimizer == "schedule":
        return schedule.Tuner(model, question.batch_size)
    optimizer = tuning.optimizer(question.optimizer, question.momenta)
    return tuning.Tuner(optimizer, model, question.batch_size)


def _search(best, question, guess, tolerance=0.0):
    return search.least_steps(
        best, question.target, guess, question.max_steps, tolerance
    )
