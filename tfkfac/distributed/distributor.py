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

from tfkfac.blocks import CurvatureBlock, Moment
from tfkfac.distributed import agreement, assignment, packing
from tfkfac.distributed.communicator import Communicator, Names


class Distributor:
    """The collectives of one optimizer.

    Args:
        communicator: Over all ranks.
        group_size: That of the groups, a divisor of the number of ranks.
        blocks: The blocks.
        block_owners: Their owners.
        variable_owners: Those of all variables, by id.
        names: Of the collectives.
        half: Whether statistics travel in float16.
    """

    def __init__(
        self,
        communicator: Communicator,
        group_size: int,
        blocks: Sequence[CurvatureBlock],
        block_owners: Sequence[int],
        variable_owners: Mapping[int, int],
        names: Names,
        half: bool = False,
    ):
        self._ranks = communicator
        self.rank, self.size = communicator.rank, communicator.size
        self.group_size = group_size
        self.block_owners = dict(zip(blocks, block_owners))
        self._variable_owners = variable_owners
        self._names, self._half = names, half
        with tf.init_scope():
            self._kept = tf.Variable(0.0, trainable=False)
            # Added to what is sent where that could be a constant: TensorFlow
            # would fold the collective while it optimizes the graph.
            self._zero = tf.Variable(0.0, trainable=False)
        # Those with the same inverses, and one of each group.
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
        numbers: Mapping[str, tf.Tensor],
    ) -> tuple[dict[int, tf.Tensor], tf.Tensor, tuple[tf.Tensor, tf.Tensor]]:
        """Returns V of the joint batch where it is preconditioned.

        Raises InvalidArgumentError where the ranks have other numbers.

        Args:
            sums: D V of this rank, by the id of the variable.
            divisor: D of this rank.
            finite: Whether V is finite on this rank.
            examples: The number of examples of this rank.
            numbers: What has to be the same on all ranks, by name.

        Returns:
            (V by the id of the variable, for those that this rank holds;
            whether V is finite on all ranks; the numbers of examples of the
            ranks before this one, and of all).
        """
        if self.size == 1:
            V = {k: s / tf.cast(divisor, s.dtype) for k, s in sums.items()}
            examples = tf.cast(examples, tf.int64)
            return V, finite, (tf.zeros_like(examples), examples)
        dtype = packing.widest(g.dtype for g in sums.values())
        one_hot = tf.one_hot(self.rank, self.size, dtype=dtype)
        header = tf.stack([1 - tf.cast(finite, dtype), tf.cast(divisor, dtype)])
        steers = agreement.Agreement(
            numbers, self._ranks, self._names.of("numbers")
        )
        header = tf.concat(
            [header, one_hot * tf.cast(examples, dtype), steers.digits(dtype)],
            axis=0,
        )
        ranks = range(self.size)
        owned = [self._owned(sums, [r]) for r in ranks]
        if self.group_size == 1:
            parts = [
                packing.flatten([header, *o.values()], dtype) for o in owned
            ]
            found = self._reduce_scatter(parts, "gradients")
            held = owned[self.rank]
        else:
            held = {k: v for o in owned for k, v in o.items()}
            joined = packing.flatten([header, *held.values()], dtype)
            found = self._all_reduce(joined, "gradients")
        head, digits, found = tf.split(
            found, [2 + self.size, agreement.LENGTH, -1]
        )
        with tf.control_dependencies([steers.require(digits)]):
            failed, total, *counts = tf.unstack(tf.identity(head))
        V = {
            k: tf.cast(value, sums[k].dtype) / tf.cast(total, sums[k].dtype)
            for k, value in zip(held, packing.unflatten(found, held.values()))
            if self.holds(self._variable_owners[k])
        }
        before = sum(counts[: self.rank], start=tf.zeros([], dtype))
        examples = tuple(tf.cast(x, tf.int64) for x in (before, sum(counts)))
        return V, tf.equal(failed, 0), examples

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
        counts = self._ranks.all_gather(
            (examples + tf.cast(self._zero, tf.int64))[tf.newaxis],
            [1] * self.size,
            # All that a step may begin with has one name, for other ranks to
            # meet it (`sync.first_collective`); the two are never in flight
            # together.
            self._names.of("gradients"),
        )
        counts = tf.concat(counts, axis=0)
        self._keep(counts)
        return tf.reduce_sum(counts[: self.rank]), tf.reduce_sum(counts)

    def _all_reduce(self, tensor, name):
        return self._ranks.all_reduce(tensor, self._names.of(name))

    def _reduce_scatter(self, parts: Sequence[tf.Tensor], name: str):
        """Returns the sum over the ranks of the part of this rank.

        By an all-to-all and a sum, so that parts of unequal length need no
        padding, or by an all-reduce (`assignment.scatters`).
        """
        lengths = [p.shape[0] for p in parts]
        joined = tf.concat(parts, axis=0)
        if not assignment.scatters(lengths):
            joined = self._all_reduce(joined, name)
            return tf.split(joined, lengths)[self.rank]
        received = self._ranks.all_to_all(joined, lengths, self._names.of(name))
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
            return {b: list(m) for b, m in moments.items()}, count
        owned = [
            {b: m for b, m in moments.items() if self.block_owners[b] == rank}
            for rank in range(self.size)
        ]
        moments_of = [[m for ms in o.values() for m in ms] for o in owned]
        own = moments_of[self.rank]
        if self._half:
            parts = [packing.flatten_half(ms, count) for ms in moments_of]
            received = self._ranks.all_to_all(
                tf.concat(parts, axis=0),
                [p.shape[0] for p in parts],
                self._names.of("statistics"),
            )
            found = packing.sum_half(received, own)
        else:
            parts = [packing.flatten_moments(ms, count) for ms in moments_of]
            found = self._reduce_scatter(parts, "statistics")
        self._keep(found)
        totals, total_count = packing.unflatten_moments(found, own)
        following = iter(totals)
        reduced = {
            block: [next(following) for _ in of_block]
            for block, of_block in owned[self.rank].items()
        }
        return reduced, tf.cast(total_count, count.dtype)

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
        dtype = packing.widest(v.dtype for vs in owned for v in vs)
        lengths = [1 + sum(v.shape.num_elements() for v in vs) for vs in owned]
        found = self._group.all_gather(
            packing.flatten(values, dtype), lengths, self._names.of("inverses")
        )
        for variables, part in zip(owned, found):
            self._keep(part)
            values = packing.unflatten(part[1:], variables)
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
        dtype = packing.widest(t.dtype for t in shapes.values())
        sums = tf.cast(sums, dtype) + tf.cast(self._zero, dtype)
        count = sums.shape[0]
        lengths = [
            count + sum(t.shape.num_elements() for t in o.values())
            for o in groups
        ]
        found = self._across.all_gather(
            packing.flatten([sums, *(U[k] for k in own)], dtype),
            lengths,
            self._names.of("updates"),
        )
        result = {}
        for of_group, part in zip(groups, found):
            values = packing.unflatten(part[count:], of_group.values())
            for k, value in zip(of_group, values):
                result[k] = tf.cast(value, shapes[k].dtype)
        total = tf.reduce_sum(tf.stack([p[:count] for p in found]), axis=0)
        return result, tf.cast(total, tf.float64)
