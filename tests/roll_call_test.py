"""Where ranks say they are, with Horovod alive, dead, and a rank stopped."""

import http.server
import threading

import pytest
import tensorflow as tf
import two_ranks

from tfkfac.distributed import roll_call

SHUT_DOWN = tf.errors.UnknownError(None, None, "Horovod has been shut down.")


def test_ranks_at_one_place_go_on():
    roll_call.require_same(["at the end of epoch 1"] * 3)


def test_places_are_listed_with_their_ranks():
    message = (
        r"do not do the same. Ranks 0, 2: in batch 4. Rank 1: at the end, with "
        r"stop_training set. Give all ranks the same callbacks"
    )
    with pytest.raises(roll_call.RanksError, match=message):
        roll_call.require_same(
            ["in batch 4", "at the end, with stop_training set", "in batch 4"]
        )


def test_a_gather_tells_ranks_at_different_places():
    """And one that meets another collective, by its name."""

    def gather(ranks):
        ranks.gather_objects(1, f"at {ranks.rank // 2}")

    with pytest.raises(roll_call.RanksError, match="Ranks 0, 1: at 0. Rank 2"):
        two_ranks.run(3, gather)

    def meet(ranks):
        if ranks.rank == 0:
            try:
                ranks.all_reduce(tf.zeros([1]), "gradients")
            except tf.errors.OpError as error:
                raise ranks.explained(error, "in batch 2") from error
        ranks.gather_objects(1, "at the end", "gradients")

    message = "Rank 0: in batch 2. Rank 1: at the end."
    with pytest.raises(roll_call.RanksError, match=message):
        two_ranks.run(2, meet)


def no_gather(place):
    raise SHUT_DOWN


@pytest.fixture
def launcher(monkeypatch):
    """A store, as `horovodrun` has one."""
    values = {}

    class Store(http.server.BaseHTTPRequestHandler):
        def do_PUT(self):
            length = int(self.headers["Content-Length"])
            values[self.path] = self.rfile.read(length)
            self.send_response(200)
            self.end_headers()

        def do_GET(self):
            self.send_response(200 if self.path in values else 404)
            self.end_headers()
            self.wfile.write(values.get(self.path, b""))

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Store)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HOROVOD_GLOO_RENDEZVOUS_ADDR", "127.0.0.1")
    port = str(server.server_address[1])
    monkeypatch.setenv("HOROVOD_GLOO_RENDEZVOUS_PORT", port)
    monkeypatch.setattr(roll_call, "_numbers", iter([0] * 9))
    monkeypatch.setattr(roll_call, "_SECONDS", 1.0)
    yield values
    server.shutdown()
    server.server_close()


def test_ranks_that_do_not_answer_are_named(launcher):
    """By those that do, where Horovod has ended."""
    found = []

    def ask(rank):
        found.append(
            roll_call.explained(SHUT_DOWN, rank, "in batch 3", 4, no_gather)
        )

    threads = [threading.Thread(target=ask, args=[r]) for r in (0, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    for error in found:
        said = str(error)
        assert said.startswith("Ranks 1, 3 do not answer: stopped, or ended")
        assert "Ranks 0, 2: in batch 3." in said


def test_all_ranks_alive_say_what_has_ended_horovod(launcher):
    launcher["/tfkfac/0.1"] = b"in batch 3"
    found = roll_call.explained(SHUT_DOWN, 0, "in batch 3", 2, no_gather)
    assert str(found) == "In batch 3: Horovod has been shut down."
    launcher["/tfkfac/0.1"] = b"in batch 4"
    found = roll_call.explained(SHUT_DOWN, 0, "in batch 3", 2, no_gather)
    assert "Rank 0: in batch 3. Rank 1: in batch 4." in str(found)


@pytest.mark.parametrize("size, who", [(2, "Rank 1"), (3, "Another rank")])
def test_without_a_launcher(monkeypatch, size, who):
    monkeypatch.delenv("HOROVOD_GLOO_RENDEZVOUS_ADDR", raising=False)
    found = roll_call.explained(SHUT_DOWN, 0, "in batch 3", size, no_gather)
    assert str(found).startswith(f"{who} does not answer")


def test_what_failed_at_one_place_is_said_without_a_trace():
    error = tf.errors.UnknownError(
        None,
        None,
        "Graph execution error:\n\nDetected at node tfkfac.0.gradients\n"
        '  File "/a.py", line 3, in step\n\nHorovod ended: one rank stalled.\n'
        "\t [[{{node tfkfac.0.gradients}}]]",
    )
    found = roll_call.explained(error, 0, "in batch 2", 2, lambda p: [p, p])
    assert str(found) == "In batch 2: Horovod ended: one rank stalled."
