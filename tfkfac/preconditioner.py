"""Statistics -> factors -> inverses -> preconditioned gradients."""

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from tfkfac.blocks import CurvatureBlock, Use
from tfkfac.blocks.factored import all_finite
from tfkfac.inverters import Inverter


class Curvature(tf.Module):
    """The curvature state by name: factors, inverses, and whether they fit.

    A trackable, for `tf.train.Checkpoint`. Values that are loaded before there
    is a model wait here until `add` asks for them.
    """

    def __init__(self):
        super().__init__(name="curvature")
        # Plain attributes: a container that TensorFlow tracks is no list.
        # fresh: whether there is a variable that was not loaded.
        self.__dict__.update(_names=[], _waiting={}, fresh=False)

    def add(self, name: str, initial: tf.Tensor) -> tf.Variable:
        """Returns the variable of that name, made if it is not there.

        Raises:
            ValueError: A loaded value of that name has another shape.
        """
        variable = getattr(self, name, None)
        shape = tuple(initial.shape)
        if variable is None or tuple(variable.shape) != shape:
            variable = tf.Variable(initial, trainable=False, name="curvature")
            setattr(self, name, variable)
            if name not in self._waiting:
                self.__dict__["fresh"] = True
            if name not in self._names:
                self._names.append(name)
        if name in self._waiting:
            value = np.asarray(self._waiting.pop(name))
            if value.shape != shape:
                raise ValueError(
                    f"Saved curvature {name!r} has shape {value.shape}, and "
                    f"this model needs {shape}: it was saved with "
                    "another model, inverter or setting of KFAC."
                )
            variable.assign(value)
        return variable

    def keep(self, names: Sequence[str]) -> None:
        """Forgets the variables whose names are not among `names`."""
        for name in set(self._names) - set(names):
            delattr(self, name)
            self._names.remove(name)

    def state(self) -> dict[str, np.ndarray]:
        """Returns all values by name."""
        values = {name: getattr(self, name).numpy() for name in self._names}
        return {**values, **self._waiting}

    def load(self, values: Mapping[str, np.ndarray]) -> None:
        """Takes values by name; those not asked for yet wait."""
        self._waiting.update(values)
        for name in list(self._names):
            if name in self._waiting:
                self.add(name, getattr(self, name))

    def waiting(self) -> list[str]:
        """Returns the names of loaded values that no variable took."""
        return sorted(self._waiting)

    def nbytes(self, prefix: str = "") -> int:
        """Returns the size in bytes of the state whose names start so."""
        variables = [
            getattr(self, name)
            for name in self._names
            if name.startswith(prefix)
        ]
        return sum(v.shape.num_elements() * v.dtype.size for v in variables)


class Preconditioner:
    """The blocks of a model at work.

    Args:
        blocks: The blocks.
        inverter: How they are inverted.
        curvature: Where their state lies.
        factor_dtype: The type of the factor products; float32 stands for the
            variable's own where that is wider.
        max_factor_size: Factors with longer sides keep their diagonal alone.
        accumulates: Whether statistics are summed over micro-steps.
    """

    def __init__(
        self,
        blocks: Sequence[CurvatureBlock],
        inverter: Inverter,
        curvature: Curvature,
        factor_dtype: str,
        max_factor_size: int | None = None,
        accumulates: bool = False,
    ):
        self.blocks = list(blocks)
        if max_factor_size is not None:
            for block in self.blocks:
                block.limit_factors(max_factor_size)
        self._factor_dtype = tf.as_dtype(factor_dtype)
        # By block, N or R of each factor's sum over micro-steps.
        self._divisors = []
        names = ["refresh_needed"]
        self.refresh_needed = curvature.add("refresh_needed", tf.constant(True))
        for block in self.blocks:

            def add_state(name, initial, path=block.path):
                names.append(f"{path}/{name}")
                return curvature.add(names[-1], initial)

            dtype = state_dtype(block.variables[0])
            block.build(inverter, add_state, dtype, accumulates)
            if accumulates:
                zero = tf.zeros([len(block.factors)], dtype)
                self._divisors.append(add_state("divisors", zero))
        curvature.keep(names)
        if curvature.fresh:
            self.refresh_needed.assign(True)
            curvature.__dict__["fresh"] = False

    def update_factors(
        self, uses: Sequence[Use], count: tf.Tensor, decay: tf.Tensor
    ) -> None:
        """Takes the statistics of a step into the factors.

        A factor is A = (1 / N) sum a a^T or G = (1 / R) sum g g^T, with N the
        number of loss terms and R that of the block's rows.

        Args:
            uses: All calls of layers, with their gradients.
            count: N.
            decay: rho.
        """
        for block, moments in self._moments(uses):
            for factor, moment in zip(block.factors, moments):
                divisor = count if factor.rows_are_terms else moment.rows
                self._take(factor, moment.total, divisor, decay)

    def _moments(self, uses):
        """Yields (block, its moments) for the blocks that were used."""
        for block in self.blocks:
            own = [
                use
                for use in uses
                if block.is_of(use) and use.gradient is not None
            ]
            if not own:
                continue
            dtype = state_dtype(block.variables[0])
            product_dtype = self._factor_dtype
            if product_dtype == tf.float32:
                product_dtype = dtype
            yield block, block.moments(own, product_dtype, dtype)

    def _take(self, factor, total, divisor, decay):
        dtype = total.dtype
        # Without rows or terms X is NaN, which the factor leaves out.
        X = total / tf.cast(divisor, dtype)
        factor.update(X, tf.cast(decay, dtype))

    def accumulate(self, uses: Sequence[Use], count: tf.Tensor) -> None:
        """Adds the statistics of a micro-step.

        Args:
            uses: All calls of layers, with their gradients.
            count: N of the micro-step.
        """
        divisors = dict(zip(self.blocks, self._divisors))
        for block, moments in self._moments(uses):
            divisor = divisors[block]
            counts = [
                tf.cast(count if f.rows_are_terms else m.rows, divisor.dtype)
                for f, m in zip(block.factors, moments)
            ]
            started = tf.unstack(divisor > 0)
            divisor.assign_add(tf.stack(counts))
            for factor, moment, more in zip(block.factors, moments, started):
                factor.accumulate(moment.total, more)

    def finish(self, decay: tf.Tensor) -> None:
        """Takes the sums over the micro-steps into the factors."""
        for block, divisors in zip(self.blocks, self._divisors):
            for factor, count in zip(block.factors, tf.unstack(divisors)):
                self._take(factor, factor.take_sum(), count, decay)
            divisors.assign(tf.zeros_like(divisors))

    def discard(self) -> None:
        """Forgets the sums over the micro-steps."""
        for block, divisors in zip(self.blocks, self._divisors):
            for factor in block.factors:
                factor.take_sum()
            divisors.assign(tf.zeros_like(divisors))

    def refresh(self, dampings: Mapping[str, tf.Tensor]) -> None:
        """Inverts all blocks, each with its damping by name."""
        work = []
        for block in self.blocks:
            dtype = state_dtype(block.variables[0])
            damping = tf.cast(dampings[block.damping], dtype)
            work.append((block, block.invert(damping), damping))
        good = [all_finite(values) for _, values, _ in work]

        def accept():
            for block, values, _ in work:
                block.accept(values)
            return tf.constant(True)

        def recover():
            for block, values, damping in work:
                block.recover(values, damping)
            return tf.constant(False)

        if work:
            tf.cond(tf.reduce_all(tf.stack(good)), accept, recover)
        self.refresh_needed.assign(False)

    def precondition(
        self,
        gradients: Mapping[int, tf.Tensor],
        dampings: Mapping[str, tf.Tensor],
    ) -> dict[int, tf.Tensor]:
        """Returns U for V, both by the id of the variable.

        A variable that no block claims keeps its gradient; so does a block
        that lacks the gradient of one of its variables.
        """
        result = dict(gradients)
        for block in self.blocks:
            keys = [id(v) for v in block.variables]
            if all(key in gradients for key in keys):
                dtype = state_dtype(block.variables[0])
                V = [gradients[key] for key in keys]
                damping = tf.cast(dampings[block.damping], dtype)
                U = block.precondition(V, damping)
                result.update(zip(keys, U))
        return result


def state_dtype(variable) -> tf.DType:
    """Returns the type of the state for a variable: float32 or wider."""
    dtype = tf.as_dtype(variable.dtype)
    return dtype if dtype.size > 4 else tf.float32
