"""The harness is tested with a clock that only the contestants move, so that every number is known in advance."""

import json
import statistics
import sys

import pytest

from astrozoo.bench.harness import (
    Comparison,
    Samples,
    Target,
    measure,
    measure_processes,
    report,
)


class FakeClock:
    """Time stands still except for what a contestant is said to take."""

    def __init__(self):
        self.now = 0.0
        self.log = []

    def __call__(self):
        return self.now

    def contestant(self, name, durations):
        left = iter(durations)

        def run():
            self.log.append(name)
            self.now += next(left)

        return run


@pytest.fixture
def clock():
    return FakeClock()


def test_median_quartiles_and_ratio_of_known_durations(clock):
    comparison = measure(
        {"ours": clock.contestant("ours", [1, 2, 3, 4, 5]), "peer": clock.contestant("peer", [2, 4, 6, 8, 10])},
        rounds=5,
        warmup=0,
        clock=clock,
    )
    assert comparison.samples["ours"].seconds == (1, 2, 3, 4, 5)
    assert comparison.samples["ours"].median() == 3
    assert comparison.samples["ours"].quartiles() == (2, 4)
    ratio = comparison.ratio("ours", "peer")
    assert (ratio.value, ratio.low, ratio.high) == (0.5, 0.5, 0.5)
    assert comparison.difference("peer", "ours") == 3


def test_ratio_spread_is_that_of_rounds():
    comparison = Comparison("", {"a": Samples((1.0, 2.0, 3.0)), "b": Samples((1.0, 1.0, 2.0))})
    per_round = [1.0, 2.0, 1.5]
    low, _, high = statistics.quantiles(per_round, n=4, method="inclusive")
    ratio = comparison.ratio("a", "b")
    assert (ratio.value, ratio.low, ratio.high) == (2.0, low, high)


def test_warmup_is_thrown_away(clock):
    comparison = measure({"a": clock.contestant("a", [100, 100, 1, 1, 1])}, rounds=3, warmup=2, clock=clock)
    assert comparison.samples["a"].seconds == (1, 1, 1)


def test_every_round_holds_every_contestant_once_in_changing_order(clock):
    contestants = {name: clock.contestant(name, [1] * 12) for name in "abc"}
    measure(contestants, rounds=12, warmup=0, clock=clock)
    rounds = [clock.log[start : start + 3] for start in range(0, 36, 3)]
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len({tuple(order) for order in rounds}) > 2
    first_log = clock.log.copy()
    clock.log.clear()
    measure({name: clock.contestant(name, [1] * 12) for name in "abc"}, rounds=12, warmup=0, clock=clock)
    assert clock.log == first_log, "equal seeds give equal orders"


def test_setup_is_told_the_name_and_not_timed(clock):
    prepared = []

    def setup(name):
        prepared.append(name)
        clock.now += 1000

    comparison = measure({"a": clock.contestant("a", [1] * 4)}, rounds=3, warmup=1, setup=setup, clock=clock)
    assert prepared == ["a"] * 4
    assert comparison.samples["a"].seconds == (1, 1, 1)


def test_samples_are_divided_by_calls(clock):
    comparison = measure({"a": clock.contestant("a", [2] * 20)}, rounds=2, warmup=0, calls=10, clock=clock)
    assert comparison.samples["a"].seconds == (2, 2)


def test_an_error_of_a_contestant_is_not_swallowed():
    def broken():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        measure({"a": broken}, rounds=1)


@pytest.mark.parametrize(
    ("contestants", "options"),
    [({}, {}), ({"a": int}, {"rounds": 0}), ({"a": int}, {"memory": True})],
    ids=["nobody", "no rounds", "memory on the CPU"],
)
def test_what_cannot_be_measured_is_refused(contestants, options):
    with pytest.raises(ValueError, match=r"nothing to measure|measure_processes"):
        measure(contestants, **options)


@pytest.mark.parametrize(
    ("value", "limits", "met"),
    [
        (3.0, {"at_most": 3.0}, True),
        (3.1, {"at_most": 3.0}, False),
        (20.0, {"at_least": 20.0}, True),
        (19.0, {"at_least": 20.0}, False),
    ],
)
def test_target_says_whether_it_is_met(value, limits, met):
    comparison = Comparison("", {"a": Samples((1.0,))})
    target = comparison.target("speed", value, **limits)
    assert target.met is met
    assert comparison.met is met
    assert str(target).startswith("met" if met else "MISSED")


def test_target_needs_exactly_one_limit():
    comparison = Comparison("", {"a": Samples((1.0,))})
    with pytest.raises(ValueError, match="either at_most or at_least"):
        comparison.target("x", 1.0)
    with pytest.raises(ValueError, match="either at_most or at_least"):
        comparison.target("x", 1.0, at_most=1, at_least=1)


def test_ratio_and_difference_targets():
    samples = {"ours": Samples((1e-4,), (100,)), "bare": Samples((5e-5,), (50,))}
    comparison = Comparison("", samples)
    assert comparison.target_ratio("ours", "bare", at_most=3).value == pytest.approx(2)
    assert comparison.target_ratio("ours", "bare", at_most=1.1, metric="peak_bytes").met is False
    extra = comparison.target_difference("ours", "bare", at_most=100)
    assert extra.value == pytest.approx(50)
    assert extra.unit == " us"


def test_memory_that_was_not_measured_is_said_so():
    with pytest.raises(ValueError, match="peak_bytes was not measured"):
        Samples((1.0,)).median("peak_bytes")


def test_fresh_processes_give_time_and_peak_memory():
    comparison = measure_processes(
        {
            "small": [sys.executable, "-S", "-c", "pass"],
            "large": [sys.executable, "-S", "-c", "import time; x = b'1' * 200_000_000; time.sleep(0.3)"],
        },
        rounds=2,
        warmup=0,
    )
    small, large = comparison.samples["small"], comparison.samples["large"]
    assert large.median() - small.median() > 0.2
    assert large.median("peak_bytes") - small.median("peak_bytes") == pytest.approx(200e6, rel=0.1)


def test_peak_memory_of_a_process_does_not_include_its_parents():
    held = bytearray(b"1") * 300_000_000
    comparison = measure_processes({"small": [sys.executable, "-S", "-c", "pass"]}, rounds=1, warmup=0)
    assert len(held) == 300_000_000
    assert comparison.samples["small"].median("peak_bytes") < 100e6


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([sys.executable, "-S", "-c", "import sys; sys.exit('no such star')"], "status 1: no such star"),
        (["/nonexistent/program"], "status 127"),
    ],
    ids=["fails", "absent"],
)
def test_a_failing_process_stops_the_measurement(argv, said):
    with pytest.raises(RuntimeError, match=said):
        measure_processes({"bad": argv}, rounds=1)


def test_a_process_may_time_itself():
    command = [sys.executable, "-S", "-c", "print('loading'); print(12.5)"]
    comparison = measure_processes({"a": command}, rounds=2, warmup=0, self_timed=True)
    assert comparison.samples["a"].seconds == (12.5, 12.5)
    assert comparison.samples["a"].median("peak_bytes") > 1e6


def test_a_process_that_forgets_to_print_its_time_is_reported():
    with pytest.raises(RuntimeError, match="print its seconds last, got 'done'"):
        measure_processes({"a": [sys.executable, "-S", "-c", "print('done')"]}, rounds=1, self_timed=True)


@pytest.fixture
def comparison():
    result = Comparison("forward", {"ours": Samples((0.001, 0.002), (10, 20)), "peer": Samples((0.004, 0.004))})
    result.target_ratio("ours", "peer", at_most=1.0)
    result.notes.append("[peer] runs in float32")
    return result


def test_report_prints_numbers_targets_notes_and_environment(comparison, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert report([comparison]) is True
    printed = capsys.readouterr().out
    for part in ("1.5 ms", "4 ms", "2.67x", "met: time of ours over peer", "[peer] runs in float32", "torch 2"):
        assert part in printed


def test_report_writes_json_that_holds_the_raw_samples(comparison, capsys, tmp_path):
    file = tmp_path / "report.json"
    report([comparison], json_file=str(file))
    document = json.loads(file.read_text())
    assert document["met"] is True
    row = document["comparisons"][0]
    assert row["contestants"]["ours"]["seconds"] == [0.001, 0.002]
    assert row["contestants"]["ours"]["peak_bytes"] == [10, 20]
    assert row["targets"][0]["met"] is True
    assert {"date", "processor", "cores", "torch", "device"} <= row["environment"].keys()
    assert "forward" in capsys.readouterr().out


def test_json_on_stdout_is_all_there_is(comparison, capsys):
    comparison.targets.append(Target("skill", 0.5, 0.9, "at least"))
    assert report([comparison], json_file="-") is False
    assert json.loads(capsys.readouterr().out)["met"] is False
