"""Inversion of blocks, those of equal shapes as one.

Blocks of equal shapes are a family, which an inverter takes for one block: what
the graph of a step holds goes with the number of families, not of layers.
"""

import weakref
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from tfkfac import linalg
from tfkfac.blocks.factored import MAX_FAILURES, FactoredBlock
from tfkfac.inverters import Inverter
from tfkfac.readings import Readings
from tfkfac.tracing import apart, on_host

MAX_ROUNDING = 0.1  # Of U, relative; a layer with more is named.


def invert(
    members: Sequence[FactoredBlock],
    inverter: Inverter,
    dampings: Mapping[str, tf.Tensor],
    named: Mapping[FactoredBlock, tf.Variable] | None,
    readings: Readings | None = None,
) -> None:
    """Inverts the factors of blocks, whose state has one type.

    What fails is tried again in float64 with ten times the damping, and counts
    as `FactoredBlock` says. Where rounding may change U by more than
    `MAX_ROUNDING`, or float64 was needed, the layer is named on stderr, once.

    Args:
        members: The blocks.
        inverter: How they are inverted.
        dampings: By name, in the type of the state.
        named: For each block, whether it was named; None where nothing can be
            printed.
        readings: What takes numbers of the inverses, where somebody watches.
    """
    families = _families(members)
    problems = [f.problem(dampings[f.damping]) for f in families]
    found = inverter.invert_all(problems)
    good = linalg.all_finite(_flat(found))
    usual = tf.logical_and(good, _is_usual(families))
    inexact = None
    if named is not None:
        inexact = [
            family.inexact(inverter.rounding(problem, values), named)
            for family, problem, values in zip(families, problems, found)
        ]
        none = tf.logical_not(tf.reduce_any(tf.concat(inexact, axis=0)))
        usual = tf.logical_and(usual, none)

    def take():
        for family, values in zip(families, found):
            family.take(values)
        return tf.constant(True)

    def recover():
        def wide():
            return _flat(_wide(inverter, problems))

        again = iter(tf.cond(good, lambda: _flat(found), wide))
        chosen = [
            family.choose(values, [next(again) for _ in values])
            for family, values in zip(families, found)
        ]
        for family, (values, _, _) in zip(families, chosen):
            family.take(values)
        if named is not None:
            _, usable, gave_up = zip(*chosen)
            _report(families, named, inexact, usable, gave_up)
        return tf.constant(True)

    unusual = apart(recover)
    if named is not None and not tf.executing_eagerly():
        unusual = _again_on_host(members, inverter, dampings, named)
    tf.cond(usual, take, unusual)
    if readings is not None:
        for family, problem, values in zip(families, problems, found):
            readings.note_inverses(family.members, inverter, problem, values)


def _again_on_host(members, inverter, dampings, named):
    """Returns a branch that inverts once more, in Python.

    It holds what the model holds weakly, as `on_host` asks for.
    """
    pairs = [(weakref.ref(m), weakref.ref(named[m])) for m in members]
    names = tuple(dampings)

    def again(*values):
        variables = {member(): variable() for member, variable in pairs}
        invert([*variables], inverter, dict(zip(names, values)), variables)
        return [v.value() for v in _state(variables)]

    return lambda: on_host(again, [*dampings.values()], _state(members))


def _state(members):
    """Returns what an inversion assigns."""
    state = [v for m in members for v in (m.failures, *m.inverses)]
    return state + [factor.weight for m in members for factor in m.factors]


def _flat(values):
    return [tensor for of_family in values for tensor in of_family]


def _wide(inverter, problems):
    """Returns the inverses of a second attempt, in the type of the first."""
    wide = [
        (
            diagonal,
            [tf.cast(matrix, tf.float64) for matrix in matrices],
            10 * tf.cast(damping, tf.float64),
        )
        for diagonal, matrices, damping in problems
    ]
    return [
        [tf.cast(tensor, matrices[0].dtype) for tensor in values]
        for values, (_, matrices, _) in zip(inverter.invert_all(wide), problems)
    ]


def _is_usual(families):
    """Returns whether all factors are known, and no inversion has failed."""
    weights = tf.concat([w for f in families for w in f.weights], axis=0)
    failures = tf.concat([f.failures for f in families], axis=0)
    in_a_row, _ = tf.unstack(failures, axis=1)
    known = tf.reduce_all(tf.not_equal(weights, 0))
    return tf.logical_and(known, tf.reduce_all(tf.equal(in_a_row, 0)))


def _families(members):
    found: dict[tuple, list[FactoredBlock]] = {}
    for member in members:
        shapes = [(f.diagonal, f.shape) for f in member.factors]
        found.setdefault((member.damping, *shapes), []).append(member)
    return [_Family(of_shape) for of_shape in found.values()]


class _Family:
    """Blocks of equal shapes, as they are before an inversion.

    Args:
        members: The blocks.

    Attributes:
        weights: c of all members, [members], for each of their factors.
        failures: Those of all members, in a row and in all, [members, 2].
    """

    def __init__(self, members: Sequence[FactoredBlock]):
        self.members, self.damping = members, members[0].damping
        self._factors = list(zip(*(m.factors for m in members)))
        self.weights = [
            tf.stack([factor.weight.value() for factor in of_members])
            for of_members in self._factors
        ]
        self.failures = tf.stack([m.failures.value() for m in members])

    def inexact(
        self,
        rounding: tf.Tensor,
        named: Mapping[FactoredBlock, tf.Variable],
    ) -> tf.Tensor:
        """Returns which members are to be named, [members].

        Those whose U rounding may change by more than `MAX_ROUNDING`, or that
        were not inverted, and that were not named before.

        Args:
            rounding: Of `Inverter.rounding`, [groups].
            named: By member, whether it was named.
        """
        exact = tf.reshape(rounding <= MAX_ROUNDING, [len(self.members), -1])
        before = tf.stack([named[m].value() for m in self.members])
        return tf.logical_not(tf.logical_or(tf.reduce_all(exact, 1), before))

    def problem(self, damping):
        """Returns the arguments of `Inverter.invert`."""
        diagonal = [f.diagonal for f in self.members[0].factors]
        return diagonal, list(map(self._values, range(len(diagonal)))), damping

    def _values(self, i):
        """Returns factor i of all members, one after the other."""
        factors = self._factors[i]
        if len(factors) == 1:
            return factors[0].value()
        moments = tf.stack([factor.moment.value() for factor in factors])
        weights = _column(self.weights[i], moments)
        values = tf.math.divide_no_nan(moments, weights)
        return tf.reshape(values, [-1, *moments.shape[2:]])

    def take(self, values: Sequence[tf.Tensor]) -> None:
        """Sets the inverses of all members."""
        for i, tensor in enumerate(values):
            of_members = tf.split(tensor, len(self.members))
            for member, value in zip(self.members, of_members):
                member.inverses[i].assign(value)

    def choose(
        self, first, second
    ) -> tuple[list[tf.Tensor], tf.Tensor, tf.Tensor]:
        """Chooses the first of two attempts that is finite, by member.

        Where both failed, the inverses stay and the averages of the factors
        start anew. Where not all factors have a weight, all is as it was.

        Returns:
            (the inverses; whether those of a member are new; whether it gives
            up with this failure, the last of `MAX_FAILURES` in a row; both
            [members]).
        """
        known = tf.reduce_all(tf.not_equal(tf.stack(self.weights), 0), axis=0)
        good = self._finite(first)
        usable = tf.logical_or(good, self._finite(second))
        failed = tf.logical_and(known, tf.logical_not(usable))
        usable = tf.logical_and(known, usable)
        chosen = []
        for i, (a, b) in enumerate(zip(first, second)):
            old = [m.inverses[i].value() for m in self.members]
            new = tf.where(self._rows(good, a), a, b)
            old = tf.concat(old, axis=0)
            chosen.append(tf.where(self._rows(usable, a), new, old))
        in_a_row = self._count(known, failed)
        for weights, factors in zip(self.weights, self._factors):
            weights = tf.where(failed, tf.zeros_like(weights), weights)
            for factor, weight in zip(factors, tf.unstack(weights)):
                factor.weight.assign(weight)
        last = tf.equal(in_a_row, MAX_FAILURES)
        return chosen, usable, tf.logical_and(failed, last)

    def _finite(self, tensors):
        """Returns which members' inverses are finite, [members]."""
        n = len(self.members)
        by_member = tf.concat([tf.reshape(x, [n, -1]) for x in tensors], axis=1)
        return tf.reduce_all(tf.math.is_finite(by_member), axis=1)

    def _rows(self, of_members, like):
        """Returns what broadcasts to inverses, for a number of each member."""
        n = len(self.members)
        groups = like.shape[0] // n
        if groups > 1:
            of_members = tf.gather(of_members, np.repeat(range(n), groups))
        return _column(of_members, like)

    def _count(self, known, failed):
        """Counts failures; returns how many there were in a row, [members]."""
        in_a_row, total = tf.unstack(self.failures, axis=1)
        one = tf.cast(failed, total.dtype)
        in_a_row = tf.where(known, one * (in_a_row + 1), in_a_row)
        new = tf.stack([in_a_row, total + one], axis=1)
        for member, value in zip(self.members, tf.unstack(new)):
            member.failures.assign(value)
        return in_a_row


def _column(vector, like):
    """Returns [n, 1, ...] of the rank of another tensor, for [n]."""
    return tf.reshape(vector, [-1, *[1] * (like.shape.rank - 1)])


def _report(families, named, inexact, usable, gave_up):
    """Names members that are inexact but usable, and those that gave up.

    Args:
        families: The families.
        named: By member, whether it was named; it is noted here.
        inexact, usable, gave_up: Of each family, [members].
    """
    members = [m for f in families for m in f.members]
    inexact, usable, gave_up = (
        tf.concat(of_families, axis=0)
        for of_families in (inexact, usable, gave_up)
    )
    inexact = tf.logical_and(inexact, usable)
    for member, value in zip(members, tf.unstack(inexact)):
        named[member].assign(tf.logical_or(named[member], value))
    dtype = members[0].inverses[0].dtype
    mend = "Center or normalize the inputs of the layer, or raise the damping"
    if dtype == tf.float32:
        mend += ', or call keras.config.set_floatx("float64") before all else'
    paths = [m.path for m in members]
    _say(
        paths,
        inexact,
        f"{dtype.name} does not resolve the factors with this damping, and "
        f"rounding may change U by more than {MAX_ROUNDING:.0%}. {mend}.",
    )
    _say(
        paths,
        gave_up,
        f"{MAX_FAILURES} inversions failed in a row; the plain gradient is "
        "taken until one succeeds. Raise the damping, or look for infinities "
        "in the inputs.",
    )


def _say(paths: Sequence[str], which: tf.Tensor, what: str) -> None:
    """Prints what is to be said of some paths; [paths] tells which."""

    def say():
        chosen = tf.boolean_mask(tf.constant(paths), which)
        names = tf.strings.reduce_join(chosen, separator=", ")
        line = tf.strings.join(["tfkfac: ", names, f": {what}"])
        tf.print(line, output_stream="file:///dev/stderr")
        return tf.constant(True)

    tf.cond(tf.reduce_any(which), say, lambda: tf.constant(False))
