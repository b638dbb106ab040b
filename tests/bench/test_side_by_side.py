"""Processes that get ready together and are measured in turn: who fails, dies or is late loses no other's result."""

import os
import time
from dataclasses import dataclass

import pytest

from astrozoo.bench.side_by_side import devices, side_by_side


@dataclass(frozen=True)
class Task:
    name: str
    device: str = "one"
    preparing: str = ""
    measuring: str = ""


def prepare(task):
    act(task.preparing)
    return {"of": task.name, "process": os.getpid(), "ready": time.monotonic()}


def measure(task, state):
    start = time.monotonic()
    result = act(task.measuring)
    time.sleep(0.3)
    return result or {**state, "same process": state["process"] == os.getpid(), "turn": (start, time.monotonic())}


def act(how):
    if how == "fails":
        raise ValueError(f"it {how}\nand says more")
    if how == "dies":
        os._exit(3)
    if how == "hangs":
        time.sleep(600)
    return (lambda: None) if how == "cannot be pickled" else None


def test_those_that_fail_die_or_are_late_are_told_and_the_others_measured():
    tasks = [
        Task("good"),
        Task("raises", preparing="fails"),
        Task("dies", preparing="dies"),
        Task("late", preparing="hangs"),
        Task("raises at its turn", measuring="fails"),
        Task("dies at its turn", measuring="dies"),
        Task("cannot be sent", measuring="cannot be pickled"),
        Task("good as well", device="two"),
    ]
    outcomes = side_by_side(tasks, prepare, measure, jobs=len(tasks), minutes=0.3)
    assert list(outcomes) == [task.name for task in tasks]
    for name in ("good", "good as well"):
        assert outcomes[name].failure == ""
        assert outcomes[name].value["of"] == name
        assert outcomes[name].value["same process"]
    assert outcomes["raises"].failure == outcomes["raises at its turn"].failure == "ValueError: it fails"
    assert "exit status 3" in outcomes["dies"].failure
    assert "exit status 3" in outcomes["dies at its turn"].failure
    assert outcomes["late"].failure == "was not ready in time"
    assert "cannot be sent" in outcomes["cannot be sent"].failure
    assert all(outcome.value is None for outcome in outcomes.values() if outcome.failure)


def test_no_two_of_a_device_measure_at_a_time_and_none_while_others_prepare():
    tasks = [Task(f"{device}{index}", device) for index in range(2) for device in ("one", "two")]
    outcomes = side_by_side(tasks, prepare, measure, jobs=2)
    values = {name: outcome.value for name, outcome in outcomes.items()}
    for device in ("one", "two"):
        (_, end), (start, _) = sorted(values[task.name]["turn"] for task in tasks if task.device == device)
        assert end <= start
    assert max(value["ready"] for value in values.values()) <= min(value["turn"][0] for value in values.values())
    assert len({value["process"] for value in values.values()}) == len(tasks)


def test_with_one_job_each_is_measured_before_the_next_prepares():
    first, second = side_by_side([Task("a"), Task("b", "two")], prepare, measure, jobs=1).values()
    assert first.value["turn"][1] <= second.value["ready"]


def test_who_is_not_measured_in_time_is_told():
    tasks = [Task("hangs at its turn", measuring="hangs"), Task("waits for it"), Task("elsewhere", "two")]
    outcomes = side_by_side(tasks, prepare, measure, jobs=3, minutes=0.2)
    assert outcomes["hangs at its turn"].failure == outcomes["waits for it"].failure == "was not measured in time"
    assert outcomes["elsewhere"].value["of"] == "elsewhere"


def test_names_are_told_apart_and_there_is_a_job():
    with pytest.raises(ValueError, match="different names"):
        side_by_side([Task("a"), Task("a")], prepare, measure, jobs=1)
    with pytest.raises(ValueError, match="0 jobs"):
        side_by_side([Task("a")], prepare, measure, jobs=0)


def test_all_gpus_share_the_tasks_of_cuda(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert devices("cuda", 3) == ["cuda:0", "cuda:1", "cuda:0"]
    assert devices("cuda:1", 2) == ["cuda:1", "cuda:1"]
    assert devices("cpu", 2) == ["cpu", "cpu"]
