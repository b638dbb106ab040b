"""Worker processes that load data: what they raise, their death, and that none is left."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import cases
import pytest
import torch
import xarray as xr
from torch.utils.data import get_worker_info

from astrozoo.batch import Batch, collate
from astrozoo.data import TimeSplit, infill, open_fields
from astrozoo.data.datasets import collate as collate_fields
from astrozoo.errors import DataError, TrainingError
from astrozoo.training import checkpoint as saved
from astrozoo.training import evaluate, train
from astrozoo.training.loading import Batches, _deaths, explain_dead_worker
from astrozoo.training.order import Chunk, DataOrder

MESSAGE = "variable 'tas' cannot be read from tas.nc"


class Unreadable(cases.Samples):
    """Its last sample cannot be read."""

    def __getitem__(self, index: int) -> Batch:
        if index == len(self) - 1:
            raise DataError(MESSAGE)
        return super().__getitem__(index)


def batches(samples, workers=1):
    return Batches(samples, collate, [[0, 1], [len(samples) - 1]], workers=workers)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV], ids=["killed", "crashed"])
def test_a_dead_worker_stops_training_clearly_and_the_same_call_goes_on(number, tmp_path, capfd):
    settings = cases.exact(tmp_path, "num_workers=2")

    def shoot(trainer) -> None:
        if trainer.step == 4:
            os.kill(multiprocessing.active_children()[0].pid, number)

    with pytest.raises(TrainingError, match=r"worker process that loads data \(pid.* are intact") as caught:
        train(cases.net(), cases.Line(augment=True), settings, callbacks=[shoot])
    # The traceback holds the loader, whose other worker would keep this process from ending.
    assert caught.tb is not None
    assert multiprocessing.active_children() == []
    assert saved.latest_checkpoint(tmp_path / "checkpoints").state["step"] == 3
    again = train(cases.net(), cases.Line(augment=True), settings)
    whole = train(cases.net(), cases.Line(augment=True), cases.exact(tmp_path / "whole", "num_workers=2"))
    for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)
    capfd.readouterr()  # torch's own report of the crash


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_ours_reads_the_same_from_a_worker(workers):
    with batches(Unreadable(5, 0), workers) as loaded, pytest.raises(DataError) as caught:
        list(loaded)
    assert str(caught.value) == MESSAGE


def test_an_error_of_ours_in_collating_reads_the_same_from_a_worker():
    def refuse(_samples):
        raise DataError(MESSAGE)

    with Batches(cases.Samples(5, 0), refuse, [[0]], workers=1) as loaded, pytest.raises(DataError) as caught:
        list(loaded)
    assert str(caught.value) == MESSAGE


def test_a_bug_in_a_data_set_keeps_the_traceback_of_the_worker():
    class Wrong(cases.Samples):
        def __getitem__(self, index: int) -> Batch:
            return self.no_such_attribute

    with batches(Wrong(5, 0)) as loaded, pytest.raises(AttributeError, match="Original Traceback"):
        list(loaded)


def test_a_failed_evaluation_leaves_no_worker(data):
    data.test = Unreadable(40, 1)
    with pytest.raises(DataError, match=r"tas\.nc"):
        evaluate(cases.net(), data, num_workers=2, batch_size=2)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("lost", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_a_batch_whose_worker_has_died_is_a_dead_worker(lost):
    loaded = batches(cases.Samples(5, 0))
    next(iter(loaded))
    (worker,) = multiprocessing.active_children()
    worker.kill()
    worker.join()

    class Broken:  # what the loader does when it asks the dead worker for the memory of a batch
        _workers = (worker,)

        def __next__(self):
            raise lost

    real, loaded._iterator = loaded._iterator, Broken()
    with pytest.raises(RuntimeError, match=rf"worker \(pid {worker.pid}\) exited with status -9") as caught:
        loaded._next()
    assert "lower num_workers" in explain_dead_worker(caught.value)
    loaded._iterator = real
    loaded.close()


def test_a_death_is_raised_where_batches_are_taken_and_nowhere_else():
    loaded = batches(cases.Samples(5, 0))
    taken = iter(loaded)
    next(taken)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while not _deaths and time.monotonic() < deadline:  # torch's handler runs here, and raises nothing here
        time.sleep(0.01)
    with pytest.raises(RuntimeError, match=rf"worker \(pid {worker.pid}\) is killed by signal: Killed"):
        next(taken)
    loaded.close()
    assert not _deaths


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_group_spares_a_worker_that_has_just_been_born(number):
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    loaded = batches(cases.Samples(5, 0))
    loaded._start()
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, number)  # as part of its group, long before it has imported its handlers
    assert [len(loaded._next()) for _ in range(2)] == [2, 1]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
    loaded.close()
    assert multiprocessing.active_children() == []


def test_workers_go_from_epoch_to_epoch_without_a_pause():
    """All batches of a run come from one iteration, and each with the transforms of its epoch, whoever is ahead."""

    class Epochs(cases.Samples):
        epoch = -1

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def __getitem__(self, index: int) -> Batch:
            return Batch({"x": torch.tensor([float(self.epoch), float(get_worker_info().id)])})

    order = DataOrder(4, 2)
    order.epochs = 6
    with Batches(Epochs(4, 0), collate, order, workers=2) as loaded:
        values = torch.cat([batch.inputs["x"] for batch in loaded])
    assert values[:, 0].tolist() == [epoch for epoch in range(6) for _ in range(4)]
    assert set(values[:, 1].tolist()) == {0.0, 1.0}


def test_holes_of_an_epoch_are_the_same_whatever_other_workers_do():
    times = xr.date_range("2001-01-01", periods=40, freq="D")
    values = torch.randn(40, 8, 16).numpy()
    coordinates = {"time": times, "lat": torch.linspace(-80, 80, 8).numpy(), "lon": torch.arange(16).numpy() * 22.5}
    fields = xr.Dataset({"tas": (("time", "lat", "lon"), values, {"units": "K"})}, coordinates)

    samples = infill(open_fields(fields), split=TimeSplit(train=0.7, val=0.15, test=0.15)).train
    chunks = []
    for epoch in (0, 1) * 20:  # one worker is always in the one, the other in the other
        chunks.append(Chunk(range(len(samples))))
        chunks[-1].seed = (0, epoch, 0, 0)

    def inputs(workers: int) -> torch.Tensor:
        with Batches(samples, collate_fields, chunks, workers=workers) as loaded:
            return torch.cat([batch.inputs["x"] for batch in loaded])

    assert torch.equal(inputs(0), inputs(2))


def test_static_fields_are_sent_once_and_not_once_per_sample():
    static = torch.randn(3, 4)
    batch = Batch({"x": torch.randn(5, 2), "static": static.expand(5, 3, 4)}, {"y": torch.randn(5)}, {"lat": static[0]})
    small = batch.condensed()
    assert small.inputs["static"].shape == (1, 3, 4)
    assert small.inputs["x"] is batch.inputs["x"]
    copied = small.map(torch.clone).expanded(batch)
    assert copied.inputs["static"].stride(0) == 0
    for ours, theirs in zip(copied._parts(), batch._parts(), strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_other_errors_are_no_dead_workers():
    assert explain_dead_worker(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    assert explain_dead_worker(RuntimeError()) is None
