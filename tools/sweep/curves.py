"""A metric along a trial: {"step": steps, metric: values there}."""


def sign(metric: str) -> int:
    """Returns 1 of a loss, which is to fall, and -1 of an accuracy."""
    return 1 if metric.endswith("loss") else -1


def best_value(curve: dict, metric: str) -> float:
    """Returns the least loss, or the largest accuracy, of a curve."""
    return (min if sign(metric) > 0 else max)(curve[metric])


def steps_to(curve: dict, metric: str, value: float) -> int | None:
    """Returns the first step of a curve that is as good as a value."""
    for step, found in zip(curve.get("step", []), curve.get(metric, [])):
        if sign(metric) * found <= sign(metric) * value:
            return step
    return None
