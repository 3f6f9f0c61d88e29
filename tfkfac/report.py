"""The coverage report: which block each variable has."""

from collections.abc import Callable

import keras
import tensorflow as tf
from absl import logging

from tfkfac.blocks import UNSEEN
from tfkfac.registry import Registration
from tfkfac.state import Curvature


def _size(variables) -> int:
    return sum(v.value.shape.num_elements() for v in variables)


def _mebibytes(n: int) -> str:
    return f"{n / 2**20:.2f} MiB"


def _block_bytes(block, curvature: Curvature) -> int:
    return curvature.nbytes(block.path + "/")


def table(
    model: keras.Model,
    registration: Registration,
    curvature: Curvature,
    product_dtype: tf.DType = tf.float32,
    fallback: str = "Adam",
    remark: str = "",
) -> str:
    """Returns the report as text.

    Args:
        model: The model.
        registration: Its blocks, and what has none.
        curvature: The state of the blocks.
        product_dtype: The type in which the products of the statistics run.
        fallback: The update of what has no block.
        remark: What else is to be said.
    """
    head = "layer", "block", "factors", "method", "parameters"
    rows: list[tuple[str, ...]] = [(*head, "curvature state")]
    for block in registration.blocks:
        rows.append(
            (
                block.path,
                type(block).__name__,
                block.describe(),
                block.describe_method(product_dtype),
                f"{_size(block.variables):,}",
                _mebibytes(_block_bytes(block, curvature)),
            )
        )
    if not any(row[3] for row in rows[1:]):  # No block has a choice.
        rows = [row[:3] + row[4:] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * w for w in widths))
    for variable, reason in zip(registration.fallback, registration.reasons):
        lines.append(f"{variable.path}: {fallback} ({reason})")
    lines += [remark] if remark else []
    lines.append(summary_line(model, registration, curvature))
    return "\n".join(lines)


def summary_line(
    model: keras.Model, registration: Registration, curvature: Curvature
) -> str:
    """Returns the report in one sentence."""
    total = _size(model.trainable_variables)
    covered = total - _size(registration.fallback)
    moments = sum(curvature.nbytes(f"{p}/") for p in registration.paths)
    line = (
        f"K-FAC covers {covered:,} of {total:,} trainable parameters "
        f"({100 * covered / total:.1f} %) in {len(registration.blocks)} "
        f"blocks; curvature state: {_mebibytes(curvature.nbytes() - moments)}"
    )
    if moments:
        line += f", moments of the fallback: {_mebibytes(moments)}"
    return line


def log(
    model: keras.Model,
    registration: Registration,
    curvature: Curvature,
    fallback: str,
    remark: str,
    warn: Callable[[str], None],
) -> None:
    """Logs the sentence, and warnings for what has no block, and the remark.

    Args:
        model, registration, curvature, fallback, remark: As of `table`.
        warn: Says a warning about the model.
    """
    logging.info(
        "%s: %s", model.name, summary_line(model, registration, curvature)
    )
    named = [
        f"{v.path} ({reason})"
        for v, reason in zip(registration.fallback, registration.reasons)
        if not reason.endswith(UNSEEN)
    ]
    if named:
        warn(f"no curvature for {', '.join(named)}; their update: {fallback}.")
    if remark:
        warn(remark)
