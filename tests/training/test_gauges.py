"""What the log says about the machine, and that measuring it never harms the run."""

from __future__ import annotations

import json
import threading
import time

import cases
import pytest
import torch

from astrozoo.training import gauges, train
from astrozoo.training.gauges import Gauges, Utilization


class Driver:
    """Answers as the driver's library does; after `good` samples it fails."""

    def __init__(self, *rates: int, good: int = 1000) -> None:
        self.rates, self.good, self.asked = list(rates), good, 0

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid, handle) -> int:
        assert uuid == b"GPU-1234"
        return 0

    def nvmlDeviceGetUtilizationRates(self, handle, rates) -> int:
        self.asked += 1
        if self.asked > self.good:
            return 3
        rates._obj.gpu = self.rates[min(self.asked, len(self.rates)) - 1]
        return 0


@pytest.fixture(autouse=True)
def one_gpu(monkeypatch):
    monkeypatch.setattr(gauges, "_uuid", lambda device: "GPU-1234")
    monkeypatch.setattr(gauges, "_PERIOD", 0.001)


def wait_until(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert condition()


def test_utilisation_is_the_mean_of_the_samples_since_the_last_look(monkeypatch):
    monkeypatch.setattr(gauges, "_PERIOD", 3600)
    watched = Utilization(torch.device("cuda"), Driver(50, 100))
    assert watched.mean() == 0.5  # taken at once, so that a short run has one, too
    assert watched.mean() is None
    watched._sample()
    assert watched.mean() == 1.0
    watched.close()


def test_a_thread_samples_until_it_is_closed():
    before = threading.active_count()
    driver = Driver(80)
    watched = Utilization(torch.device("cuda"), driver)
    wait_until(lambda: driver.asked > 3)
    assert threading.active_count() == before + 1
    watched.close()
    assert threading.active_count() == before
    assert watched.mean() == 0.8


def test_a_driver_that_fails_later_ends_the_measurement_only():
    watched = Utilization(torch.device("cuda"), Driver(80, good=2))
    wait_until(lambda: watched.problem)
    assert "nvmlDeviceGetUtilizationRates answers 3, which this GPU" in watched.problem
    watched.close()


def test_a_gpu_that_cannot_say_is_no_error():
    watched = Utilization(torch.device("cuda"), Driver(80, good=0))
    assert "answers 3" in watched.problem
    assert watched.mean() is None
    watched.close()


def test_a_machine_without_the_library_is_no_error(monkeypatch):
    def missing(_name):
        raise OSError("libnvidia-ml.so.1: cannot open shared object file")

    monkeypatch.setattr(gauges.ctypes, "CDLL", missing)
    assert "cannot open" in Utilization(torch.device("cuda")).problem


def test_memory_of_the_process_is_read():
    read = Gauges(torch.device("cpu"))
    kept = torch.ones(8 << 20)
    assert kept.nbytes < read.read()["host_bytes"] < 1.1 * read.peak  # the kernel counts the two in different ways


def test_a_line_of_the_log_tells_how_long_steps_waited_for_data(tmp_path):
    class Slow(cases.Samples):
        def __getitem__(self, index: int):
            time.sleep(0.01)
            return super().__getitem__(index)

    def share(samples) -> float:
        data = cases.Line()
        data.train = samples
        out = tmp_path / type(samples).__name__
        train(cases.net(), data, cases.exact(out, "log.every=6", "epochs=1"))
        lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        (line,) = (line for line in lines if line["event"] == "train")
        assert line["host_bytes"] > 0
        return line["data_wait"]

    slow = share(Slow(22, 0))
    assert 0 < share(cases.Samples(22, 0)) < slow < 1
    assert slow > 0.2  # 22 x 10 ms, and the rest of six steps of a tiny network
