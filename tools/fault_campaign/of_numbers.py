"""Numbers out of their range: arguments, assignments, schedules."""

import functools

import keras
import tensorflow as tf

import tfkfac
from tools.fault_campaign import faults, small

_BAD = {"NaN": float("nan"), "infinity": float("inf"), "-1": -1, "text": "no"}
_ARGUMENTS = (
    "learning_rate",
    "damping",
    "momentum",
    "factor_decay",
    "kl_clip",
    "norm_damping",
    "embedding_damping",
    "fallback_learning_rate",
    "factor_update_period",
    "inverse_update_period",
    "drift_tolerance",
    "overhead",
    "max_factor_size",
    "max_skipped_steps",
    "seed",
    "strategy",
    "weight_decay",
    "clipnorm",
    "global_clipnorm",
    "clipvalue",
    "gradient_accumulation_steps",
)
_MAY = {("kl_clip", "infinity"), ("drift_tolerance", "infinity")}
_MORE = {
    "damping=0": {"damping": 0},
    "kl_clip=0": {"kl_clip": 0},
    "momentum=1.5": {"momentum": 1.5},
    "factor_decay=1": {"factor_decay": 1},
    "global_clipnorm=0": {"global_clipnorm": 0},
    "inverse_update_period=1.5": {"inverse_update_period": 1.5},
    "ema_momentum=2": {"use_ema": True, "ema_momentum": 2},
    "fisher=true": {"fisher": "true"},
    "skip=name": {"skip": "logits"},
    "likelihood=text": {"likelihood": "categorical"},
}


def _make(folder, arguments):
    tfkfac.KFAC(**arguments)


def _refused(name):
    return rf"{name}\b.*(must|should|give|choose)"


for _name in _ARGUMENTS:
    for _text, _value in _BAD.items():
        if (_name, _text) not in _MAY:
            faults.add(
                "numbers",
                f"{_name} of {_text}",
                functools.partial(_make, arguments={_name: _value}),
                refused=_refused(_name),
            )
for _text, _arguments in _MORE.items():
    faults.add(
        "numbers",
        _text,
        functools.partial(_make, arguments=_arguments),
        refused=_refused(_text.partition("=")[0]),
    )


def _assign(folder, name, value):
    model = small.network()
    optimizer = tfkfac.KFAC(0.05, kl_clip=0.001, model=model)
    before = float(getattr(optimizer, name))
    try:
        setattr(optimizer, name, value)
    finally:
        assert float(getattr(optimizer, name)) == before


for _name in ("learning_rate", "damping", "momentum", "kl_clip"):
    for _text, _value in _BAD.items():
        if (_name, _text) not in _MAY:
            faults.add(
                "numbers",
                f"{_name} assigned {_text}",
                functools.partial(_assign, name=_name, value=_value),
                refused=rf"KFAC\({_name}=.*must be",
            )


class _From(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule that is sound up to an update."""

    def __init__(self, sound, then, update=2):
        self.sound, self.then, self.update = sound, then, update

    def __call__(self, step):
        late = tf.cast(step, tf.int64) >= self.update
        return tf.where(late, self.then, self.sound)


def _schedule(folder, name, sound, then):
    """Updates that it spoils change nothing, and name it; then an error."""
    model = small.compiled(**{name: _From(sound, then), "max_skipped_steps": 2})
    reference = small.fit(small.compiled(**{name: sound}), *_first(2))
    try:
        small.fit(model, epochs=3)
    finally:
        small.assert_same(model, reference, rtol=1e-6)
        said = (folder / "output").read_text()
        assert f"range: {name}" in said, said


def _first(batches):
    return small.X[: batches * small.BATCH], small.Y[: batches * small.BATCH]


for _name, _sound in {
    "learning_rate": 0.05,
    "damping": 0.1,
    "momentum": 0.5,
    "factor_decay": 0.9,
    "kl_clip": 0.001,
}.items():
    for _text in ("NaN", "-1"):
        faults.add(
            "numbers",
            f"{_name} schedule comes to {_text}",
            functools.partial(
                _schedule, name=_name, sound=_sound, then=float(_BAD[_text])
            ),
            refused="KFAC skipped.*(schedule|lower)",
        )


@faults.fault("numbers", refused="learning rate did.*Look for such values")
def the_variable_of_the_rate_is_NaN(folder):  # noqa: N802
    model = small.compiled(max_skipped_steps=2)
    model.optimizer._learning_rate.assign(float("nan"))
    small.unchanged(model, lambda: small.fit(model, epochs=2))


def _period(folder, value):
    """Of no length: each update is due, as with 1."""

    def number(update):
        return tf.constant(value, tf.float32)

    models = [
        small.fit(small.compiled(inverse_update_period=period), epochs=2)
        for period in (number, 1)
    ]
    small.assert_same(*models)


for _text, _value in {"0": 0.0, "-3": -3.0, "NaN": float("nan")}.items():
    faults.add(
        "numbers",
        f"period schedule of {_text}",
        functools.partial(_period, value=_value),
    )


@faults.fault("numbers", refused="damping.*schedule.*cannot be assigned")
def a_schedule_is_assigned_a_number(folder):
    tfkfac.KFAC(0.1, damping=_From(0.1, 0.1)).damping = 0.2


@faults.fault("numbers", refused="cannot be serialized.*register")
def a_lambda_is_saved(folder):
    model = small.fit(small.compiled(damping=lambda t: 0.1))
    model.save(folder / "model.keras")
