"""What the ranks send each other in a step (Osawa et al. 2019, algorithm 1).

    gradients    D V of all ranks, summed on those that precondition them
    statistics   second moments, upper triangles alone, summed on their owners
    inverses     from their owners to the rest of the group that holds them
    updates      U, from those that computed it to all

Each block, and each variable without one, has an owner. Groups of `group_size`
neighbouring ranks hold the inverses of what their members own and precondition
it: 1 is Osawa's scheme, the number of ranks replicates all inverses, and those
between are KAISA's.
"""

from collections.abc import Mapping, Sequence

import tensorflow as tf

from tfkfac import linalg
from tfkfac.blocks import CurvatureBlock, Moment
from tfkfac.communicator import Communicator


class Exchange:
    """The collectives of one optimizer.

    Args:
        communicator: Over all ranks.
        group_size: That of the groups, a divisor of the number of ranks.
        blocks: The blocks.
        block_owners: Their owners.
        variable_owners: Those of all variables, by id.
        name: Of the collectives, the same on all ranks.
        half: Whether statistics travel in float16.
    """

    def __init__(
        self,
        communicator: Communicator,
        group_size: int,
        blocks: Sequence[CurvatureBlock],
        block_owners: Sequence[int],
        variable_owners: Mapping[int, int],
        name: str,
        half: bool = False,
    ):
        self.communicator = communicator
        self.rank, self.size = communicator.rank, communicator.size
        self.group_size = group_size
        self.block_owners = dict(zip(blocks, block_owners))
        self._variable_owners = variable_owners
        self._name, self._half = name, half
        # One with the same inverses, and one of each group.
        with tf.init_scope():
            self._kept = tf.Variable(0.0, trainable=False)
            # Added to what is sent where that could be a constant: TensorFlow
            # would fold the collective while it optimizes the graph.
            self._zero = tf.Variable(0.0, trainable=False)
        self._group = self._across = communicator
        n, g = self.size, group_size
        if 1 < g < n:
            self._group = communicator.split(
                [range(i, i + g) for i in range(0, n, g)]
            )
            self._across = communicator.split(
                [range(i, n, g) for i in range(g)]
            )

    def _keep(self, received: tf.Tensor) -> None:
        """Has a collective take place whose result this rank may not need.

        TensorFlow would prune it, and the other ranks would wait for it.
        """
        self._kept.assign(tf.cast(tf.reshape(received, [-1])[0], tf.float32))

    def owns(self, block: CurvatureBlock) -> bool:
        """Whether this rank has the factors of the block."""
        return self.block_owners[block] == self.rank

    def holds(self, owner: int) -> bool:
        """Whether this rank has the inverses of what `owner` owns."""
        return owner // self.group_size == self.rank // self.group_size

    def reduce_gradients(
        self,
        sums: Mapping[int, tf.Tensor],
        divisor: tf.Tensor,
        finite: tf.Tensor,
        examples: tf.Tensor,
    ) -> tuple[dict[int, tf.Tensor], tf.Tensor, tf.Tensor]:
        """Returns V of the joint batch where it is preconditioned.

        Args:
            sums: D V of this rank, by the id of the variable.
            divisor: D of this rank.
            finite: Whether V is finite on this rank.
            examples: The number of examples of this rank.

        Returns:
            (V by the id of the variable, for those that this rank holds;
            whether V is finite on all ranks; the number of examples of the
            ranks before this one).
        """
        if self.size == 1:
            V = {k: s / tf.cast(divisor, s.dtype) for k, s in sums.items()}
            return V, finite, tf.zeros([], tf.int64)
        dtype = _widest(sums.values())
        one_hot = tf.one_hot(self.rank, self.size, dtype=dtype)
        header = tf.stack([1 - tf.cast(finite, dtype), tf.cast(divisor, dtype)])
        header = tf.concat([header, one_hot * tf.cast(examples, dtype)], 0)
        ranks = range(self.size)
        owned = [self._owned(sums, [r]) for r in ranks]
        if self.group_size == 1:
            parts = [_flatten([header, *o.values()], dtype) for o in owned]
            found = self._reduce_scatter(parts, "gradients")
            held = owned[self.rank]
        else:
            held = {k: v for o in owned for k, v in o.items()}
            joined = _flatten([header, *held.values()], dtype)
            found = self._all_reduce(joined, "gradients")
        (failed, total, *counts), found = (
            tf.unstack(found[: 2 + self.size]),
            found[2 + self.size :],
        )
        V = {
            k: tf.cast(value, sums[k].dtype) / tf.cast(total, sums[k].dtype)
            for k, value in zip(held, _unflatten(found, held.values()))
            if self.holds(self._variable_owners[k])
        }
        before = sum(counts[: self.rank], start=tf.zeros([], dtype))
        return V, tf.equal(failed, 0), tf.cast(before, tf.int64)

    def _owned(self, by_id, owners) -> dict:
        return {k: v for k, v in by_id.items()
                if self._variable_owners[k] in owners}  # fmt: skip

    def count_examples(
        self, examples: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the number of examples of the ranks before this, and of all.

        Args:
            examples: That of this rank.
        """
        examples = tf.cast(examples, tf.int64)
        if self.size == 1:
            return tf.zeros_like(examples), examples
        counts = self.communicator.all_gather(
            (examples + tf.cast(self._zero, tf.int64))[tf.newaxis],
            [1] * self.size,
            self._name + ".examples",
        )
        counts = tf.concat(counts, axis=0)
        self._keep(counts)
        return tf.reduce_sum(counts[: self.rank]), tf.reduce_sum(counts)

    def _all_reduce(self, tensor, name):
        return self.communicator.all_reduce(tensor, f"{self._name}.{name}")

    def _reduce_scatter(self, parts: Sequence[tf.Tensor], name: str):
        """Returns the sum over the ranks of the part of this rank.

        By an all-to-all and a sum, so that parts of unequal length need no
        padding; where the longest part makes one rank receive more than an
        all-reduce would move, by an all-reduce.
        """
        lengths = [p.shape[0] for p in parts]
        joined = tf.concat(parts, axis=0)
        if self.size * max(lengths) > 2 * sum(lengths):
            joined = self._all_reduce(joined, name)
            return tf.split(joined, lengths)[self.rank]
        received = self.communicator.all_to_all(
            joined, lengths, f"{self._name}.{name}"
        )
        return tf.reduce_sum(received, axis=0)

    def reduce_moments(
        self,
        moments: Mapping[CurvatureBlock, Sequence[Moment]],
        count: tf.Tensor,
    ) -> tuple[dict[CurvatureBlock, list[Moment]], tf.Tensor]:
        """Returns the moments over all ranks, for the blocks of this rank.

        Args:
            moments: Those of this rank, for all blocks.
            count: N of this rank.

        Returns:
            (moments by block, N over all ranks).
        """
        if self.size == 1:
            return dict(moments), count
        owned = [
            {b: m for b, m in moments.items() if self.block_owners[b] == rank}
            for rank in range(self.size)
        ]
        mine = owned[self.rank]
        totals = [m for of_block in mine.values() for m in of_block]
        if self._half:
            found = self._send_half(owned, count)
        else:
            parts = [self._statistics(o, count) for o in owned]
            found = self._reduce_scatter(parts, "statistics")
        self._keep(found)
        packed = [_packed(m) for m in totals]
        values = _unflatten(found[1:], [m.rows for m in totals] + packed)
        sums = iter(
            Moment(_unpacked(value, m.total), rows)
            for m, rows, value in zip(totals, values, values[len(totals) :])
        )
        reduced = {b: [next(sums) for _ in ms] for b, ms in mine.items()}
        return reduced, tf.cast(found[0], count.dtype)

    @staticmethod
    def _statistics(owned, count):
        """Returns N, all R and all packed moments as one vector."""
        flat = [m for of_block in owned.values() for m in of_block]
        dtype = _widest([count, *(m.total for m in flat)])
        rows = [m.rows for m in flat]
        return _flatten([count, *rows, *map(_packed, flat)], dtype)

    def _send_half(self, owned, count):
        """As `_reduce_scatter` of `_statistics`, in float16 but for counts.

        Each moment is divided by its largest element, so that nothing
        overflows, and the sum over the ranks is taken in float32.
        """
        parts, numbers = [], []
        for of_rank in owned:
            flat = [m for of_block in of_rank.values() for m in of_block]
            packed = [tf.cast(_packed(m), tf.float32) for m in flat]
            scales = [tf.reduce_max(tf.abs(p)) for p in packed]
            scales = [tf.where(s > 0, s, 1) for s in scales]
            head = [count, *(m.rows for m in flat), *scales]
            head = tf.stack([tf.cast(x, tf.float32) for x in head])
            head = tf.reshape(tf.bitcast(head, tf.float16), [-1])
            halves = [
                tf.cast(p / s, tf.float16) for p, s in zip(packed, scales)
            ]
            parts.append(tf.concat([head, *halves], axis=0))
            numbers.append([p.shape[0] for p in packed])
        received = self.communicator.all_to_all(
            tf.concat(parts, axis=0),
            [p.shape[0] for p in parts],
            self._name + ".statistics",
        )
        lengths = numbers[self.rank]
        k = len(lengths)
        split = 2 * (1 + 2 * k)
        head = tf.reshape(received[:, :split], [self.size, 1 + 2 * k, 2])
        head = tf.bitcast(head, tf.float32)
        parts = tf.split(received[:, split:], lengths, 1) if lengths else []
        moments = [
            tf.cast(part, tf.float32) * head[:, 1 + k + i, tf.newaxis]
            for i, part in enumerate(parts)
        ]
        return tf.reduce_sum(tf.concat([head[:, : 1 + k], *moments], 1), axis=0)

    def share_inverses(
        self, inverses: Mapping[CurvatureBlock, Sequence[tf.Variable]]
    ) -> None:
        """Gives the inverses of this rank's blocks to the rest of its group.

        Args:
            inverses: The variables, of all blocks that the group holds.
        """
        if self.group_size == 1:
            return
        first = self.rank - self.rank % self.group_size
        owned = [
            [
                v
                for block, variables in inverses.items()
                if self.block_owners[block] == rank
                for v in variables
            ]
            for rank in range(first, first + self.group_size)
        ]
        values = [self._zero.value()]
        values += [v.value() for v in owned[self.rank - first]]
        dtype = _widest(v for vs in owned for v in vs if v.dtype.is_floating)
        lengths = [1 + sum(v.shape.num_elements() for v in vs) for vs in owned]
        found = self._group.all_gather(
            _flatten(values, dtype), lengths, self._name + ".inverses"
        )
        for variables, part in zip(owned, found):
            self._keep(part)
            values = _unflatten(part[1:], variables)
            for variable, value in zip(variables, values):
                variable.assign(tf.cast(value, variable.dtype))

    def gather_updates(
        self,
        U: Mapping[int, tf.Tensor],
        sums: tf.Tensor,
        shapes: Mapping[int, tf.Tensor],
    ) -> tuple[dict[int, tf.Tensor], tf.Tensor]:
        """Returns U of all variables, and the sum of `sums` over the parts.

        Args:
            U: Those that this rank has computed, by the id of the variable.
            sums: Of numbers over them, [count].
            shapes: A tensor in the shape and type of U for all variables.
        """
        if self.group_size == self.size:
            return dict(U), sums
        groups = [
            self._owned(shapes, range(i, i + self.group_size))
            for i in range(0, self.size, self.group_size)
        ]
        own = groups[self.rank // self.group_size]
        dtype = _widest(shapes.values())
        sums = tf.cast(sums, dtype) + tf.cast(self._zero, dtype)
        count = sums.shape[0]
        lengths = [
            count + sum(t.shape.num_elements() for t in o.values())
            for o in groups
        ]
        found = self._across.all_gather(
            _flatten([sums, *(U[k] for k in own)], dtype),
            lengths,
            self._name + ".updates",
        )
        result = {}
        for of_group, part in zip(groups, found):
            values = _unflatten(part[count:], of_group.values())
            for k, value in zip(of_group, values):
                result[k] = tf.cast(value, shapes[k].dtype)
        total = tf.reduce_sum(tf.stack([p[:count] for p in found]), axis=0)
        return result, tf.cast(total, tf.float64)


def _widest(tensors) -> tf.DType:
    dtypes = {t.dtype for t in tensors}
    return tf.float64 if tf.float64 in dtypes else tf.float32


def _flatten(tensors, dtype: tf.DType) -> tf.Tensor:
    """Returns the elements of all tensors as one vector."""
    flat = [tf.reshape(tf.cast(t, dtype), [-1]) for t in tensors]
    return tf.concat(flat, axis=0) if flat else tf.zeros([0], dtype)


def _unflatten(vector: tf.Tensor, templates) -> list[tf.Tensor]:
    """Undoes `_flatten`, for tensors shaped as `templates`."""
    shapes = [t.shape for t in templates]
    if not shapes:
        return []
    parts = tf.split(vector, [s.num_elements() for s in shapes])
    return [tf.reshape(part, s) for part, s in zip(parts, shapes)]


def _packed(moment: Moment) -> tf.Tensor:
    """Returns what is sent of a moment, as a vector."""
    total = moment.total
    if total.shape.rank == 3:
        total = linalg.pack_symmetric(total)
    return tf.reshape(total, [total.shape.num_elements()])


def _unpacked(vector: tf.Tensor, template: tf.Tensor) -> tf.Tensor:
    """Undoes `_packed`, for a moment shaped as `template`."""
    groups = template.shape[0]
    vector = tf.cast(vector, template.dtype)
    if template.shape.rank == 3:
        packed = tf.reshape(vector, [groups, -1])
        return linalg.unpack_symmetric(packed, template.shape[1])
    return tf.reshape(vector, template.shape)
