"""Checks all that K-FAC relies on, on one's own model and a batch of data.

    python -m tools.verify --model=resnet20
    python -m tools.verify --file=my_module:make
    horovodrun -np 2 python -m tools.verify --file=my_module:make

It prints the report of `tfkfac.verify` and ends with status 0 where all is as
it should be, else with 1. `make` is a function of one's own that returns
(model, x, y): a model that is compiled with `tfkfac.KFAC` and a batch; or
(model, x, y, step) with a training step of one's own, as `tfkfac.verify` takes
it. On several ranks each calls it, and returns its own part of a batch.

--model is one of trainers/models, on random images or tokens, or `lstm` or
`gan`: see tools/verified_models.py. docs/verify.md says what each check means,
and has the report of ResNet-20: on 32 images, 60 s of processor time in all.
"""

import importlib
import os
import sys

from absl import app, flags

_MODEL = flags.DEFINE_string("model", None, "One of the models known here.")
_FILE = flags.DEFINE_string("file", None, "module:function of one's own.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Examples, of --model.")
_GRAPH = flags.DEFINE_bool("graph", True, "Compare the step of a graph, too.")


def made_by(place: str) -> tuple:
    """Returns what a function of the user's own returns.

    Args:
        place: "module:function", the module as Python imports it, from the
            working directory too.

    Raises:
        SystemExit: There is no such function, or it returns something else.
    """
    module, _, name = place.partition(":")
    if not name:
        raise SystemExit(f"--file={place}: must be module:function.")
    sys.path.insert(0, os.getcwd())
    try:
        make = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise SystemExit(f"--file={place}: {error}.") from error
    made = make()
    if not isinstance(made, tuple) or len(made) not in (3, 4):
        raise SystemExit(
            f"--file={place}: it must return (model, x, y) or "
            f"(model, x, y, step), not {type(made).__name__}."
        )
    return made


def verify(made: tuple, graph: bool):
    """Returns the report of what `make` returned.

    Raises:
        SystemExit: It cannot be verified; the message says why.
    """
    import tfkfac

    model, x, y, *step = made
    try:
        return tfkfac.verify(
            model,
            x,
            y,
            step=step[0] if step else None,
            graph=None if graph else False,
        )
    except (TypeError, ValueError) as error:
        if str(error).startswith("verify: "):
            raise SystemExit(str(error)) from error
        raise


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    if (_MODEL.value is None) == (_FILE.value is None):
        raise SystemExit("Give either --model=NAME or --file=module:function.")
    import tfkfac

    rank = tfkfac.init().rank
    if _FILE.value is not None:
        made = made_by(_FILE.value)
    else:
        from tools import verified_models

        made = verified_models.make(_MODEL.value, _BATCH_SIZE.value)
    report = verify(made, _GRAPH.value)
    if rank == 0:
        print(report)
    sys.exit(0 if report.ok else 1)


if __name__ == "__main__":
    app.run(main)
