"""Which parameters of known models K-FAC covers, and what is left and why.

    python -m tools.coverage
    python -m tools.coverage --models=ResNet50,unet --json

Names with a capital are models of keras.applications, with images as small as
they take; the others those of `tools/example_models.py`. No step is made.

"""

import json

import keras
from absl import app, flags

import tfkfac
from tfkfac import factor_sizes
from tfkfac.blocks import UNSEEN
from tools import example_models, image_models

# The side of the images that a model takes at least.
APPLICATIONS = {
    "VGG16": 32,
    "ResNet50": 32,
    "ResNet50V2": 32,
    "DenseNet121": 32,
    "InceptionV3": 75,
    "InceptionResNetV2": 75,
    "Xception": 71,
    "MobileNet": 32,
    "MobileNetV2": 32,
    "MobileNetV3Small": 32,
    "MobileNetV3Large": 32,
    "NASNetMobile": 32,
    "EfficientNetB0": 32,
    "EfficientNetV2B0": 32,
    "ConvNeXtTiny": 32,
}
_NAMES = [*APPLICATIONS, *example_models.MODELS]
_MODELS = flags.DEFINE_list("models", _NAMES, f"Of {_NAMES}.")
_JSON = flags.DEFINE_bool("json", False, "One line of JSON for each model.")
flags.register_validator(
    "models",
    lambda names: bool(names) and all(name in _NAMES for name in names),
    message=f"must be of {_NAMES}",
)


def build(name: str) -> keras.Model:
    """Returns a model by its name, without trained weights."""
    keras.utils.clear_session(free_memory=False)
    if name in example_models.MODELS:
        return example_models.MODELS[name]()
    side = APPLICATIONS[name]
    return getattr(keras.applications, name)(
        weights=None, input_shape=(side, side, 3)
    )


def coverage(name: str, model: keras.Model) -> dict:
    """Returns what K-FAC would do with a model under its defaults.

    "covered" is the share of the trainable parameters that blocks take, and
    "fallback" the parameters that they leave, by the reason. "diagonal" are
    the factors that are too long to be whole, by their sides.
    """
    found = image_models.register(model)
    if any(UNSEEN in reason for reason in found.reasons):
        tfkfac.plan(model, batch_size=2)  # It sees what layers' calls do.
        found = image_models.register(model)
    limited = factor_sizes.limit(found.blocks, factor_sizes.DEFAULT)
    total = sum(v.value.shape.num_elements() for v in model.trainable_variables)
    left: dict[str, int] = {}
    for variable, reason in zip(found.fallback, found.reasons):
        size = variable.value.shape.num_elements()
        left[reason] = left.get(reason, 0) + size
    return {
        "model": name,
        "parameters": total,
        "covered": 1 - sum(left.values()) / total,
        "blocks": len(found.blocks),
        "fallback": left,
        "diagonal": {x.name: x.dim for x in limited},
    }


def line(row: dict) -> str:
    """Returns what `coverage` has found as a line of the table."""
    parts = [f"{n:,} {why}" for why, n in row["fallback"].items()]
    parts += [f"diagonal: {k} {n:,}" for k, n in row["diagonal"].items()]
    return (
        f"{row['model']:18} {row['parameters']:>11,} "
        f"{100 * row['covered']:>7.2f} % {row['blocks']:>7}  "
        + "; ".join(parts)
    ).rstrip()


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    if not _JSON.value:
        print(f"{'model':18} {'parameters':>11} {'covered':>9} {'blocks':>7}"
              "  parameters left to the fallback, and why")  # fmt: skip
    for name in _MODELS.value:
        row = coverage(name, build(name))
        print(json.dumps(row) if _JSON.value else line(row), flush=True)


if __name__ == "__main__":
    app.run(main)
