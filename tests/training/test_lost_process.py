"""A process that dies ends all others with the reason, whoever has started them, and leaves what was saved intact."""

from __future__ import annotations

import signal
import socket
import sys
import threading
import time
from pathlib import Path

import distributed_case
import launching
import lost_case
import pytest
import torch

from astrozoo.errors import ConfigError
from astrozoo.training import TrainConfig, lifeline
from astrozoo.training import checkpoint as saved

CASE = Path(lost_case.__file__)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> saved.Checkpoint:
    out = tmp_path_factory.mktemp("undisturbed")
    distributed_case.run(out)
    return saved.latest_checkpoint(out / "checkpoints")


def assert_goes_on(out: Path, undisturbed: saved.Checkpoint) -> None:
    """The last checkpoint, of step 4, is continued to the weights of a run that nothing has disturbed."""
    assert saved.latest_checkpoint(out / "checkpoints").state["step"] == 4
    distributed_case.run(out)
    resumed = saved.latest_checkpoint(out / "checkpoints")
    for group in ("model", "ema", "optimizer"):
        for name, tensor in undisturbed.tensors[group].items():
            torch.testing.assert_close(resumed.tensors[group][name], tensor, rtol=1e-10, atol=1e-12)


def test_error_under_torchrun_is_told_by_the_others(tmp_path, undisturbed):
    done = launching.run(*launching.torchrun(2), CASE, "raise", tmp_path)
    assert done.returncode != 0
    assert "ValueError: the disk is on fire" in done.stderr
    # The launcher may end it before it has raised an error of its own.
    assert "process 1 of 2 failed: ValueError: the disk is on fire. This is process 0, which ends too." in done.stderr
    assert_goes_on(tmp_path, undisturbed)


def test_kill_under_accelerate_is_told_by_the_others_and_by_the_launcher(tmp_path, undisturbed):
    done = launching.run(*launching.accelerate(2), CASE, "kill", tmp_path)
    assert done.returncode != 0
    assert "process 1 of 2 died without a word: it was killed" in done.stderr
    assert "Signal 9 (SIGKILL)" in done.stderr
    assert_goes_on(tmp_path, undisturbed)


@pytest.mark.parametrize(
    ("how", "reason"),
    [("raise", "failed: ValueError: the disk is on fire."), ("kill", "died without a word: it was killed")],
)
def test_the_loss_of_a_process_is_an_error_of_the_others(how, reason, tmp_path):
    processes = launching.start_alone(2, sys.executable, CASE, how, tmp_path)  # no launcher that ends them first
    status, output = launching.ends(processes[0])
    launching.ends(processes[1])
    assert status == 1
    (told,) = [line for line in output.splitlines() if "TrainingError: " in line]
    assert f"TrainingError: process 1 of 2 {reason}" in told
    assert "Checkpoints are intact: the same command goes on from the last one." in told


def test_kill_without_a_launcher_ends_processes_that_are_stuck(tmp_path, undisturbed):
    processes = launching.start_alone(2, sys.executable, CASE, "kill with a child", tmp_path)
    assert processes[1].wait(60) == -signal.SIGKILL
    status, output = launching.ends(processes[0])
    (tmp_path / "over").touch()
    processes[1].stdout.close()  # its child held the pipe
    assert status == 1
    assert "process 1 of 2 died without a word" in output
    assert "This is process 0, which ends too." in output
    assert_goes_on(tmp_path, undisturbed)


def test_process_that_does_not_answer_ends_the_others_after_the_timeout(tmp_path):
    processes = launching.start_alone(2, sys.executable, CASE, "stop", tmp_path)
    try:
        status, output = launching.ends(processes[0])
    finally:
        processes[1].kill()
        processes[1].communicate()
    assert status == 1
    assert "Timed out waiting 4000ms" in output
    assert "died" not in output


def test_timeout_is_above_zero():
    with pytest.raises(ConfigError, match=r"distributed.timeout is 0.*seconds above 0"):
        TrainConfig(distributed={"timeout": 0})


# -- the connections ---------------------------------------------------------------------------------------------------


@pytest.fixture
def ended(monkeypatch):
    """Notes the process that would be ended, instead of doing so."""
    ended = []
    monkeypatch.setattr(lifeline.Lifeline, "_end", lambda line: ended.append(line.rank))
    return ended


class Line:
    """The first process's end, and what others write to it."""

    def __init__(self, processes: int) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.address = self.server.getsockname()
        self.first = lifeline.Lifeline(0, processes)
        self.thread = threading.Thread(target=self.first.listen, args=(self.server, "secret"), daemon=True)
        self.thread.start()

    def other(self, rank: int, token: str = "secret") -> socket.socket:
        peer = socket.create_connection(self.address, timeout=10)
        peer.sendall(b'{"token": "%s", "rank": %d}\n' % (token.encode(), rank))
        return peer


def test_processes_that_say_farewell_are_not_lost(ended):
    line = Line(3)
    for rank in (1, 2):
        with line.other(rank) as peer:
            peer.sendall(b'{"end": null}\n')
    line.thread.join(10)
    assert not line.thread.is_alive()
    assert line.first.lost(0.0) is None
    assert ended == []


def test_closed_connection_is_told_to_all(ended, caplog):
    line = Line(3)
    two = line.other(2)
    line.other(1).close()
    assert line.first.lost(10).startswith("process 1 of 3 died without a word")
    with two, two.makefile() as lines:
        assert "process 1 of 3 died without a word" in lines.readline()
    assert "which ends too" in caplog.text
    assert ended == [0]


def test_message_in_pieces_is_put_together(ended):
    line = Line(2)
    with line.other(1) as peer:
        for piece in (b'{"end": "Value', b'Error: x"', b"}\n"):
            peer.sendall(piece)
        assert line.first.lost(10) == "process 1 of 2 failed: ValueError: x."


def test_processes_that_fail_together_do_not_end_each_other(ended):
    line = Line(2)
    line.first.fail(ConfigError("no such device"))
    with line.other(1) as peer:
        peer.sendall(b'{"end": "ConfigError: no such device"}\n')
    line.thread.join(10)
    assert line.first.lost(0.0) is not None
    assert ended == []


def test_stranger_is_not_let_in(ended):
    line = Line(2)
    with line.other(1, token="guess") as stranger:
        assert stranger.recv(1) == b""
    with socket.create_connection(line.address, timeout=10) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\n")
        assert stranger.recv(1) == b""
    with line.other(1) as peer:
        peer.sendall(b'{"end": null}\n')
    line.thread.join(10)
    assert line.first.lost(0.0) is None


def test_loss_of_the_first_process_is_noticed(ended):
    line = lifeline.Lifeline(1, 2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        peer = socket.create_connection(server.getsockname(), timeout=10)
        threading.Thread(target=line.call, args=(peer, "secret"), daemon=True).start()
        first, _ = server.accept()
        with first, first.makefile() as lines:
            assert lines.readline() == '{"token": "secret", "rank": 1}\n'
    assert line.lost(10).startswith("process 0 of 2 died without a word")


def test_failing_process_tells_why(ended):
    line, other = Line(2), lifeline.Lifeline(1, 2)
    peer = socket.create_connection(line.address, timeout=10)
    threading.Thread(target=other.call, args=(peer, "secret"), daemon=True).start()
    other.fail(OSError("no space left"))
    while not line.first._peers:  # it has been let in
        time.sleep(0.01)
    other.leave()
    assert line.first.lost(10) == "process 1 of 2 failed: OSError: no space left."
