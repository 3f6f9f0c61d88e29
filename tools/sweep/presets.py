"""The studies of the papers, as far as they print them.

    python -m tools.batch_size_study --preset=zhang_mnist --dry_run

Model, data and what is fixed are those of the trainer's preset that the flags
name (`trainers/configs/`). What a paper does not print is chosen here, and
the docstrings say so; flags on the command line override it.
"""

from tools.sweep import space, trials

_SIZES = tuple(2**k for k in range(4, 15))  # 16 to 16,384.


def _zhang(
    run: str,
    target: float,
    trainer: str = "cifar",
    budget: int = 100,
    metric: str = "val_accuracy",
    also: dict[str, float] | None = None,
    averaged: bool = False,
    tuned: dict[str, space.Range] | None = None,
    fixed: tuple[str, ...] = (),
    batch_sizes: tuple[int, ...] = _SIZES,
    micro_batch: int | None = None,
    least_steps: int = 2000,
    most_steps: int | None = None,
    evaluation: tuple[int, int] = (5000, 5000),
) -> trials.Study:
    """Zhang et al. 2019, section 4 and appendix F, one of six workloads.

    As the paper has it: six optimizers, each tuned for each batch size by
    quasi-random search with a budget of trials that do not diverge; the first
    trial at the target counts, and there are no further seeds. Chosen here: the
    bounds of the search, the targets, the batch sizes, how much of each split
    is evaluated, and how long a trial may be: the epochs of the trainer's
    preset, or `least_steps`.

    Args:
        run: The trainer's preset.
        target: Of the metric.
        trainer: Whose preset.
        budget: Trials of each optimizer and batch size.
        metric: Of the validation split (figure 5).
        also: Of the training split (figures 6 and 8).
        averaged: Whether SGD with averaged weights is compared (figure 6).
        tuned: What is tuned of all optimizers beside their own.
        fixed: What K-FAC does not tune.
        batch_sizes, micro_batch, least_steps, most_steps: As of the study.
        evaluation: Its evaluation_examples and split_examples.
    """
    names = [n for n in space.ARMS if averaged or n != "ema"]
    ranges = {name: {**space.QUASI_RANDOM[name]} for name in names}
    for name in names:
        for setting in fixed if name.startswith("kfac") else ():
            ranges[name].pop(setting, None)
        ranges[name] |= tuned or {}
    return trials.Study(
        trainer=trainer,
        flags=(f"--preset={run}",),
        arms={name: (name, ()) for name in names},
        batch_sizes=batch_sizes,
        spaces={name: space.bounds(of) for name, of in ranges.items()},
        search="quasi",
        trials=budget,
        seeds=(),
        metric=metric,
        target=target,
        least_steps=least_steps,
        evaluation_examples=evaluation[0],
        also=also or {},
        split_examples=evaluation[1],
        micro_batch=micro_batch,
        most_steps=most_steps,
    )


def _ma(
    run: str, arms: dict[str, tuple[str, tuple[str, ...]]], **changed
) -> trials.Study:
    """Ma et al. 2019, sections III and IV.

    As the paper has it: grids of 8 x 8 for each batch size from 128 to 16,384,
    adjusted budgets, no stop, the test split. Chosen here: an evaluation an
    epoch, of the first 10,000 examples of each split; micro-batches of 4,096,
    each with its own statistics of batch normalization; and the target of the
    table. The pictures take the targets of the stages.
    """
    values = {
        "trainer": "cifar",
        "flags": (f"--preset={run}",),
        "arms": arms,
        "batch_sizes": tuple(128 * 2**k for k in range(8)),
        "spaces": {
            name: space.bounds(space.GRID[name])
            for name in {arm for arm, _ in arms.values()}
        },
        "search": "grid",
        "trials": 8,
        "seeds": (),
        "metric": "val_accuracy",
        "target": 0.9,
        "least_steps": 1,
        "stop": False,
        "evaluation_examples": 50_000,
        "also": {"loss": 0.1},
        "micro_batch": 4096,
    }
    return trials.Study(**{**values, **changed})


_LM1B_FIXED = ("momentum", "factor_decay")  # F.4: 0.9 and 0.99.
_SGD_AND_KFAC = {"SGD": ("momentum", ()), "K-FAC": ("kfac", ())}
_FIXED_SCHEDULE = ("--decay_at=40,80",)
_PI_IS_ONE = ("--inverter=cholesky_unit_pi",)

PRESETS: dict[str, trials.Study] = {
    "zhang_mnist": _zhang(
        "zhang_mnist", 0.99, "mnist", also={"accuracy": 0.995},
        averaged=True, least_steps=1000,
    ),
    "zhang_fmnist": _zhang("zhang_fmnist", 0.91, "mnist", least_steps=1000),
    "zhang_resnet8": _zhang(
        "zhang_resnet8", 0.8, also={"accuracy": 0.8}, averaged=True
    ),
    "zhang_resnet32": _zhang(
        "zhang_resnet32", 0.92, budget=200, also={"accuracy": 0.98},
        tuned=space.SCHEDULE, batch_sizes=_SIZES[1:], micro_batch=2048,
    ),
    "zhang_vgg11": _zhang(
        "zhang_vgg11", 0.89, budget=200, tuned=space.SCHEDULE,
        batch_sizes=_SIZES[1:], micro_batch=2048,
    ),
    "zhang_lm1b": _zhang(
        "zhang_lm1b", 4.0, "lm1b", metric="val_loss", fixed=_LM1B_FIXED,
        batch_sizes=_SIZES[:9], micro_batch=256, most_steps=50_000,
        evaluation=(50_000, 2000),
    ),
    "ma_cifar10": _ma("ma_kfac", _SGD_AND_KFAC),
    "ma_svhn": _ma(
        "ma_alexnet", _SGD_AND_KFAC, evaluation_examples=73_257
    ),
    "ma_schedules": _ma(
        "ma_kfac",
        {
            **{f"{k}, scaled": v for k, v in _SGD_AND_KFAC.items()},
            **{
                f"{k}, fixed": (name, _FIXED_SCHEDULE)
                for k, (name, _) in _SGD_AND_KFAC.items()
            },
        },
    ),
    "ma_damping": _ma(
        "ma_kfac",
        {
            "normal damping": ("kfac", ()),
            "approximated damping": ("kfac", _PI_IS_ONE),
        },
        batch_sizes=(128, 8192),
    ),
}  # fmt: skip
