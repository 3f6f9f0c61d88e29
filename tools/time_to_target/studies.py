"""What is asked: tasks, and the optimizers that are compared on them.

peers        Steps and seconds to a training loss: `KFAC(model=model)` as it
             comes, and tuned, against peers; each has 16 settings. With --tasks
             any task may be named, such as `digits_cnn_512`, `digits_resnet`.
after_steps  The loss after the same steps, and the seconds beside it, of
             `KFAC()` as it comes and of Adam tuned over 12 settings.
robustness   Each of four numbers of K-FAC, and of Adam, at a third and at three
             times its default: how many reach the target within twice the
             steps of the default.
invariance   Inputs in other units, and shifted: steps to the same target, from
             the same function and from weights that are drawn as before.
defaults     A grid over K-FAC's arguments, ranked over tasks.
refresh      Steps and seconds with cheaper statistics and inverses.
stale        Statistics that grow old by Osawa et al. 2019, equations 20 and
             21, and what is kept of the curvature of batch normalization
             (section 5.4, where the diagonal goes with 21).
tied         The two uses of a tied embedding: how K-FAC adds them, K-FAC on the
             embedding alone, and Adam, each with 8 settings.
tied_cost    State and time of a step with one large tied embedding.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from tfkfac import auto_damping
from tools.time_to_target import tasks as all_tasks

SEEDS = (0, 1, 2)
TUNING_SEED = 100  # Of searches.


@dataclasses.dataclass(frozen=True)
class Arm:
    """An optimizer, and what it is tuned over.

    Attributes:
        optimizer: "kfac", or of `optimizers.PEERS`.
        settings: Arguments; the best are chosen where there are several.
        beside: The arm at twice whose steps its runs are given up; None leaves
            that to the task.
    """

    optimizer: str
    settings: tuple[dict, ...] = ({},)
    beside: str | None = None


@dataclasses.dataclass(frozen=True)
class Study:
    """Tasks, and named lists of settings.

    Attributes:
        tasks: Of `tasks.TASKS`.
        arms: By their labels.
        steps: From a task to the steps after which its loss counts; None where
            it is the steps to its target that count.
        seeds: Of the best setting of each arm.
        stay: Whether runs from the seeds go on after the target, over as many
            steps again.
    """

    tasks: tuple[str, ...]
    arms: dict[str, Arm]
    steps: dict[str, int] | None = None
    seeds: tuple[int, ...] = SEEDS
    stay: bool = False

    def after(self, task: str) -> int | None:
        """Returns the steps after which the loss of a task counts, or None."""
        return self.steps[task] if self.steps is not None else None


def _after(steps: dict[str, int], arms: dict[str, Arm], **more) -> Study:
    return Study(tuple(steps), arms, steps, **more)


def _grid(**values) -> tuple[dict, ...]:
    """Returns all combinations."""
    products = itertools.product(*values.values())
    return tuple(dict(zip(values, product)) for product in products)


_SCHEDULES = ["constant", "cosine"]
_PEERS = {
    "adam": _grid(
        learning_rate=[3e-4, 1e-3, 2e-3, 3e-3, 5e-3, 1e-2, 2e-2, 3e-2],
        schedule=_SCHEDULES,
    ),
    "adamw": _grid(
        learning_rate=[1e-3, 3e-3, 1e-2, 3e-2],
        weight_decay=[1e-4, 1e-2],
        schedule=_SCHEDULES,
    ),
    "muon": _grid(
        learning_rate=[1e-3, 2e-3, 3e-3, 5e-3, 1e-2, 2e-2, 3e-2, 5e-2],
        schedule=_SCHEDULES,
    ),
    "momentum": _grid(
        learning_rate=[0.01, 0.03, 0.1, 0.3],
        momentum=[0.9, 0.97],
        schedule=_SCHEDULES,
    ),
}
_KFAC_TUNED = _grid(
    damping=[3e-5, "auto", 3e-4, 1e-3],
    kl_clip=["auto", 3e-3],
    momentum=[0.5, 0.8],
)
_ADAM_AFTER_STEPS = _grid(
    learning_rate=[3e-4, 1e-3, 3e-3, 5e-3, 1e-2, 3e-2], schedule=_SCHEDULES
)

# What the defaults are, or begin from.
DEFAULTS: dict[str, dict[str, float]] = {
    "kfac": {
        "learning_rate": 0.1,
        "damping": auto_damping.DAMPING,
        "kl_clip": 1e-3,
        "momentum": 0.5,
    },
    "adam": {
        "learning_rate": 1e-3,
        "beta_1": 0.9,
        "beta_2": 0.999,
        "epsilon": 1e-7,
    },
}
_AVERAGES = ("momentum", "beta_1", "beta_2")


def a_third(name: str, value: float) -> float:
    """Returns a third of a number.

    Of an average with weights mu^k, it is a third of the 1 / (1 - mu) steps
    that it is over, or of mu where that would be less than one step.
    """
    if name in _AVERAGES:
        return max(1 - 3 * (1 - value), value / 3)
    return value / 3


def three_times(name: str, value: float) -> float:
    """Returns three times a number, of an average three times the steps."""
    return 1 - (1 - value) / 3 if name in _AVERAGES else 3 * value


def _robustness() -> dict[str, Arm]:
    """Returns the defaults, and each number changed by itself."""
    found = {}
    for optimizer, numbers in DEFAULTS.items():
        found[optimizer] = Arm(optimizer)
        for name, value in numbers.items():
            for sign, change in (("/3", a_third), ("x3", three_times)):
                changed = {name: value}
                if name == "damping":
                    changed["embedding_damping"] = auto_damping.OF_EMBEDDINGS
                setting = {
                    k: float(f"{change(k, v):.6g}") for k, v in changed.items()
                }
                arm = Arm(optimizer, (setting,), beside=optimizer)
                found[f"{optimizer} {name} {sign}"] = arm
    return found


def _refresh(**variants) -> dict[str, Arm]:
    usual = {"factor_update_period": 1, "inverse_update_period": 10}
    return {k: Arm("kfac", ({**usual, **v},)) for k, v in variants.items()}


_STALE = {"factor_update_period": 10, "inverse_update_period": 100}


def _stale() -> dict[str, Arm]:
    """Returns both curvatures of the normalization without staleness, and with
    that of equations 20 and 21 (Osawa et al. 2019, section 5.4)."""
    epoch = 1437 / 128  # Updates of an epoch of digits.
    fresh = {"factor_update_period": 1, "inverse_update_period": 1}
    return {
        f"{label}, {kept}": Arm("kfac", ({"norm_curvature": kept, **periods},))
        for label, periods in (
            ("fresh", fresh),
            ("rule", {"growing": epoch}),
            ("late rule", {"late": epoch}),
        )
        for kept in ("full", "diagonal")
    }


def _tied() -> dict[str, Arm]:
    settings = _grid(
        learning_rate=[0.1],
        damping=[0.01, 0.1],
        kl_clip=[1e-3, 1e-2],
        momentum=[0.5, 0.9],
    )
    kinds = {
        "kfac pooled": {"tied": "pooled"},
        "kfac balanced": {"tied": "balanced"},
        "kfac embedding alone": {"only": ["embedding"]},
    }
    adam = _grid(learning_rate=[1e-3, 3e-3, 1e-2, 3e-2], beta_2=[0.99, 0.999])
    return {
        "adam": Arm("adam", adam),
        **{
            kind: Arm("kfac", tuple({**s, **more} for s in settings))
            for kind, more in kinds.items()
        },
    }


STUDIES = {
    "peers": Study(
        all_tasks.BENCHMARK,
        {
            "kfac": Arm("kfac"),
            "kfac_tuned": Arm("kfac", _KFAC_TUNED),
            **{name: Arm(name, settings) for name, settings in _PEERS.items()},
        },
    ),
    "after_steps": _after(
        {
            "lstm": 250,
            "conv_autoencoder": 200,
            "unet": 200,
            "gru": 300,
            "generator": 300,
        },
        {"kfac": Arm("kfac"), "adam": Arm("adam", _ADAM_AFTER_STEPS)},
    ),
    "robustness": Study(all_tasks.BENCHMARK, _robustness(), seeds=SEEDS[:1]),
    "invariance": Study(
        tuple(
            name
            for task in ("diabetes", "breast_cancer")
            for name in (
                task,
                f"{task}{all_tasks.IN_UNITS}",
                f"{task}{all_tasks.SCALED}",
            )
        ),
        {"kfac": Arm("kfac"), "adam": Arm("adam")},
    ),
    "defaults": _after(
        {
            "digits_cnn": 40,
            "digits_cnn_512": 20,
            "digits_resnet": 40,
            "digits_resnet_bn": 40,
            "pydocs": 60,
        },
        {
            "kfac": Arm(
                "kfac",
                (
                    {},
                    *_grid(
                        learning_rate=[0.03, 0.1, 0.3],
                        damping=[1e-4, 1e-3, 1e-2],
                        kl_clip=[1e-3, 1e-2, 1e-1, None],
                        momentum=[0.5, 0.9],
                    ),
                ),
            )
        },
        seeds=(),
    ),
    "refresh": Study(
        ("digits_resnet", "pydocs"),
        {
            "kfac": Arm("kfac"),
            **_refresh(
                periodic={},
                staggered={"refresh": "staggered"},
                drift={"refresh": "drift"},
                every_step={"inverse_update_period": 1},
                stale=_STALE,
                stale_staggered={**_STALE, "refresh": "staggered"},
            ),
        },
    ),
    "stale": _after({"digits_resnet_bn": 250}, _stale()),
    "tied": _after({"pydocs": 150}, _tied()),
    "tied_cost": _after(
        {"tied_embedding": 20}, {"kfac": Arm("kfac"), "adam": Arm("adam")}
    ),
}


def part(
    name: str,
    tasks: Sequence[str] | None = None,
    optimizers: Sequence[str] | None = None,
    seeds: Sequence[str] | None = None,
    steps: int | None = None,
    stay: bool = False,
) -> Study:
    """Returns a study with something in place of its own.

    Args:
        name: Of `STUDIES`.
        tasks: Which are run; where a target counts, any.
        optimizers: Which arms are run.
        seeds: Whole numbers, as text.
        steps: Of each run, where it is a loss that counts.
        stay: As `Study.stay`.

    Raises:
        ValueError: One is none of those that there are; it is named first.
    """
    study = STUDIES[name]
    more: dict[str, Any] = {"stay": stay}
    if tasks is not None:
        more["tasks"] = _known("tasks", tasks, study.steps or all_tasks.TASKS)
    if optimizers is not None:
        labels = _known("optimizers", optimizers, study.arms)
        more["arms"] = {label: study.arms[label] for label in labels}
        for label, arm in more["arms"].items():
            if arm.beside is not None and arm.beside not in labels:
                raise ValueError(
                    f"optimizers: {label} is measured by {arm.beside}; name "
                    "that, too"
                )
    if seeds is not None:
        if not all(seed.isdecimal() for seed in seeds):
            raise ValueError(f"seeds={','.join(seeds)}: give whole numbers")
        more["seeds"] = tuple(map(int, seeds))
        if TUNING_SEED in more["seeds"]:
            raise ValueError(f"seeds: {TUNING_SEED} is that of the search")
    if steps is not None:
        if study.steps is None:
            raise ValueError(f"steps: {name} runs to targets")
        more["steps"] = dict.fromkeys(study.steps, steps)
    if stay and study.steps is not None:
        raise ValueError(f"stay: {name} has no targets")
    return dataclasses.replace(study, **more)


def _known(flag, given, known) -> tuple[str, ...]:
    unknown = set(given) - set(known)
    if unknown or not given:
        raise ValueError(
            f"{flag}: {', '.join(sorted(unknown)) or 'nothing'} is none of "
            f"{', '.join(known)}"
        )
    return tuple(given)
