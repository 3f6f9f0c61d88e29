"""The trials of a study in several processes."""

import multiprocessing
import os
import statistics
from collections.abc import Callable
from multiprocessing import connection

from tools.sweep import trials
from tools.sweep.store import Store
from tools.sweep.trials import Study, Task


class UnreachedError(Exception):
    """No trial has come to the target; the message says how near they came."""


def serve(sender, study: Study, cell: tuple[str, int], records: list[dict]):
    """Runs a cell in a process of its own.

    Args:
        sender: A connection; gets a Task before a trial and its record after.
        study: The study.
        cell: (label, batch size).
        records: The cell's trials so far.
    """
    from tools.sweep.cell import Cell

    label, batch_size = cell
    made = None
    while (task := trials.following(study, label, records)) is not None:
        sender.send(task)
        try:
            made = made or Cell(study, label, batch_size)
            record = made.train(task)
        except Exception as error:  # A trial that crashes ends no study.
            record = task.crashed(f"{type(error).__name__}: {error}"[:500])
        records.append(record)
        try:
            sender.send(record)
        except BrokenPipeError:  # Nobody is there to hear it.
            return


class Worker:
    """A process that runs a cell.

    Args:
        study: The study.
        cell: (label, batch size).
        records: The cell's trials so far.
    """

    def __init__(
        self, study: Study, cell: tuple[str, int], records: list[dict]
    ):
        self.cell = cell
        self._task: Task | None = None
        spawn = multiprocessing.get_context("spawn")
        self.receiver, sender = spawn.Pipe(duplex=False)
        self.process = spawn.Process(
            target=serve, args=(sender, study, cell, records), daemon=True
        )
        self.process.start()
        sender.close()  # Else the end of the process would go unnoticed.

    def record(self) -> dict | None:
        """Returns a trial that has ended, if that is what the process tells.

        Raises:
            EOFError: It has ended.
        """
        try:
            message = self.receiver.recv()
        except EOFError:
            self.process.join()
            if self._task is None:
                raise
            return self.lost(self._task)
        if isinstance(message, Task):
            self._task = message
            return None
        self._task = None
        return self._of_cell(message)

    def lost(self, task: Task) -> dict:
        """Returns the record of a trial with which the process ended."""
        self._task = None
        reason = f"the process ended with {self.process.exitcode}"
        return self._of_cell(task.crashed(reason))

    def _of_cell(self, record):
        label, batch_size = self.cell
        return {"arm": label, "batch_size": batch_size, **record}


class Runner:
    """Runs what a study lacks.

    Args:
        study: The study.
        store: Gets the trials.
        processes: How many at once, on as many cores each as there are for it.
        show: Is given a line for each trial.
    """

    def __init__(
        self,
        study: Study,
        store: Store,
        processes: int,
        show: Callable[[str], None] = print,
    ):
        self.study, self.store = study, store
        self._processes, self._show = processes, show
        cores = len(os.sched_getaffinity(0))
        threads = max(1, cores // processes)
        # Read by a new process when it imports TensorFlow.
        os.environ["TF_NUM_INTRAOP_THREADS"] = str(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

    def run(self, stop_unreached: bool = True) -> None:
        """Runs all cells.

        Args:
            stop_unreached: Whether to stop when none of the first trials, as
                many as one batch size has, has come to the target.

        Raises:
            UnreachedError: That is so.
        """
        waiting = [c for c in self.study.cells() if self._left(c)]
        running: list[Worker] = []
        try:
            while waiting or running:
                while waiting and len(running) < self._processes:
                    running.append(self._start(waiting.pop(0)))
                for worker in _told(running):
                    again = self._hear(worker, stop_unreached)
                    if again is not None:
                        running.remove(worker)
                        waiting[:0] = again
        finally:
            for worker in running:
                worker.process.kill()
                worker.process.join()

    def _start(self, cell):
        return Worker(self.study, cell, self._of(cell))

    def _hear(self, worker, stop_unreached):
        """Notes what a process tells; returns the cells to begin anew if it
        has ended, else None."""
        try:
            record = worker.record()
        except EOFError:
            if not worker.process.exitcode:
                return []
            # It died between two trials: that counts as one, too.
            records = self._of(worker.cell)
            task = trials.following(self.study, worker.cell[0], records)
            if task is None:
                return []
            record = worker.lost(task)
        if record is None:
            return None
        self.store.add(record)
        self._show(self._line(record))
        if stop_unreached:
            self._check_reached()
        ended = record.get("reason", "").startswith("the process ended")
        return [worker.cell] if ended else None

    def _of(self, cell):
        return trials.of_cell(self.store.records, *cell)

    def _left(self, cell):
        return trials.left(self.study, cell[0], self._of(cell))

    def _check_reached(self):
        """Raises UnreachedError where it is time to."""
        study, records = self.study, self.store.records
        points = len(study.settings(next(iter(study.arms))))
        enough = study.trials if study.search == "quasi" else points
        reached = any(r["status"] == trials.REACHED for r in records)
        if reached or len(records) < enough * len(study.arms):
            return
        values = [
            value for r in records for value in r["curve"].get(study.metric, [])
        ]
        extreme = min if study.metric.endswith("loss") else max
        near = f"the best was {extreme(values)}" if values else "all failed"
        raise UnreachedError(
            f"none of {len(records)} trials came to {study.metric} "
            f"{study.target:g}: {near}"
        )

    def _line(self, record):
        """Returns what is told of a trial, and the time that is left."""
        left = {cell: self._left(cell) for cell in self.study.cells()}
        total = len(self.store.records) + sum(left.values())
        seconds = sum(
            count * self._mean_seconds(cell) for cell, count in left.items()
        )
        status = record["status"]
        if record["steps"]:
            status += f" after {record['steps']} steps"
        if "reason" in record:
            status += f" ({record['reason']})"
        settings = ", ".join(
            f"{k} {v:g}" for k, v in record["settings"].items()
        )
        return (
            f"{len(self.store.records)} of {total}, "
            f"{seconds / self._processes / 60:.0f} min left: {record['arm']}, "
            f"batch {record['batch_size']}, seed {record['seed']}: {status}; "
            f"{settings}"
        )

    def _mean_seconds(self, cell):
        """Returns the seconds of a trial, of the cell or of those like it."""
        every = [r for r in self.store.records if "seconds" in r]
        label, size = cell
        alike = [
            [r for r in every if (r["arm"], r["batch_size"]) == cell],
            [r for r in every if r["batch_size"] == size],
            [r for r in every if r["arm"] == label],
            every,
        ]
        found = next((group for group in alike if group), [])
        return statistics.mean(r["seconds"] for r in found) if found else 0.0


def _told(running: list[Worker]) -> list[Worker]:
    """Waits; returns the workers that have something to tell, or have ended."""
    ready = connection.wait([worker.receiver for worker in running])
    return [worker for worker in running if worker.receiver in ready]
