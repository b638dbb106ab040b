"""Short trainings side by side: the pool, what is learnt, and the verdicts of precision and determinism."""

from __future__ import annotations

import argparse
import os
import signal
import statistics

import pytest

from astrozoo import registry
from astrozoo.bench import determinism, precision
from astrozoo.bench.families import tiny_variants
from astrozoo.bench.learnable import LearnableData
from astrozoo.bench.pool import Done, run_jobs
from astrozoo.bench.short_trainings import Job, Outcome, train_once
from astrozoo.errors import ConfigError
from astrozoo.training.trainer import FIRST_SCALE

FAMILIES = {"net": "net_tiny"}


def arguments(module, *words):
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return parser.parse_args(words)


def struck(job: str, device: str) -> str:
    """A job that does as it is called."""
    if job == "raise":
        raise ValueError("the first line\nthe second")
    if job == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return f"{job} on {device}"


@pytest.mark.parametrize("processes", [1, 2])
def test_a_job_that_raises_is_told_and_stops_no_other(processes):
    done = {
        one.job: one for one in run_jobs(struck, ["a", "raise", "b"], processes=processes, device="x", minutes=None)
    }
    assert done == {
        "a": Done("a", "a on x"),
        "b": Done("b", "b on x"),
        "raise": Done("raise", error="ValueError: the first line"),
    }


def test_a_process_that_dies_is_told_and_the_others_go_on():
    jobs = ["die", *"abc"]
    done = {one.job: one for one in run_jobs(struck, jobs, processes=2, device="cpu", minutes=None)}
    assert done["die"].error == "its process ended with status -9"
    assert [done[job].result for job in "abc"] == ["a on cpu", "b on cpu", "c on cpu"]


@pytest.mark.parametrize("processes", [1, 2])
def test_nothing_is_begun_after_the_time(processes):
    assert list(run_jobs(struck, ["a", "b"], processes=processes, device="cpu", minutes=0)) == []


@pytest.mark.parametrize("family", ["cube_vit", "cube_mae", "cube_simvp", "nbeats"])
def test_a_family_learns_within_fifty_steps(family):
    variants = tiny_variants()
    if family not in variants:
        pytest.skip(f"{family} is not installed")
    losses = train_once(Job(family, variants[family], "fp32", 0, 50, 4), "cpu").losses
    assert statistics.fmean(losses[-10:]) < 0.9 * losses[0]


def test_waves_close_around_the_globe_and_go_on_in_the_forecast():
    spec = registry.load_variant("cube_simvp_tiny").spec()
    data = LearnableData(spec, 3, sizes={"time": 4, "lon": 16})
    sample = data.train[1]
    x, y = sample.inputs["x"], sample.targets["y"]
    seam, inside = (x[..., 0] - x[..., -1]).abs().max(), x.diff(dim=-1).abs().max()
    assert seam <= 1.5 * inside
    assert x.shape[0] == 4
    mixed = 0.8 * x + 0.6 * x.roll(-1, 1)
    assert (y[0] - mixed[-1]).square().mean() < (y[-1] - mixed[-1]).square().mean()
    again = LearnableData(spec, 3, sizes={"time": 4, "lon": 16}).train[1]
    assert again.inputs["x"].equal(x)
    assert not data.train[0].inputs["x"].equal(x)


def trained(precision_name: str, seed: int, loss: float, **more) -> Done:
    job = Job("net", "net_tiny", precision_name, seed, 50, 4)
    return Done(
        job, Outcome(losses=[9.0] * 40 + [loss] * 10, **{"scale": 1.0 if precision_name == "fp16" else None, **more})
    )


def compared(*ended: Done):
    jobs = [Job("net", "net_tiny", name, seed, 50, 4) for seed in (0, 1) for name in ("fp32", "bf16", "fp16")]
    return precision.compare(FAMILIES, jobs, ended, "cpu")


PLAIN = [trained("fp32", 0, 1.0), trained("fp32", 1, 1.2)]


@pytest.mark.parametrize(("shift", "met"), [(0.1, True), (-0.19, True), (0.21, False), (-0.3, False)])
def test_the_spread_of_the_seeds_is_the_measure(shift, met):
    mixed = [trained(name, seed, loss + shift) for name in ("bf16", "fp16") for seed, loss in ((0, 1.0), (1, 1.2))]
    comparison = compared(*PLAIN, *mixed)
    assert [target.met for target in comparison.targets] == [met, met, True]
    assert comparison.rows[0]["bf16_difference"] == pytest.approx(shift)


def test_what_failed_was_not_scaled_or_not_done_is_seen():
    nan = Done(Job("net", "net_tiny", "bf16", 0, 50, 4), error="TrainingError: Non-finite loss (nan) in step 3")
    comparison = compared(*PLAIN, nan, trained("fp16", 0, 1.0, scale=None))
    missed = [target.label for target in comparison.targets if not target.met]
    assert missed == ["failed trainings of net in bf16", "fp16 trainings without scaling"]
    assert any("Non-finite loss" in note for note in comparison.notes)
    assert any(note.startswith("not done in the time given: net_tiny, bf16, seed 1") for note in comparison.notes)
    assert comparison.table().row_count == 1


def verdict(first, again, other):
    jobs = [Job("net", "net_tiny", "fp32", seed, 10, 4, True, copy) for seed, copy in ((0, 0), (0, 1), (1, 0))]
    ended = [Done(job, out) for job, out in zip(jobs, (first, again, other), strict=True) if out is not None]
    comparison = determinism.compare(FAMILIES, jobs, ended, "cuda")
    return comparison.rows[0]["fp32"]["result"], comparison.met, comparison.rows[0]["fp32"]["why"]


ONE = Outcome(losses=[2.0, 1.0], digests={"model: a": "1", "model: b": "2"})
ELSE = Outcome(losses=[3.0, 1.0], digests={"model: a": "3", "model: b": "4"})


def test_verdicts_on_bits():
    bit = Outcome(losses=[2.0, 1.5], digests={"model: a": "1", "model: b": "5"})
    assert verdict(ONE, ONE, ELSE)[:2] == ("same bits", True)
    assert verdict(ONE, bit, ELSE) == (
        "differs", False, "1 of 2 tensors differ, first model: b; losses differ from step 2",
    )  # fmt: skip
    assert verdict(ONE, ONE, ONE)[:2] == ("proves nothing", False)
    named = Outcome(operation="cumsum_cuda_kernel")
    assert verdict(named, named, named) == ("names the operation", True, "cumsum_cuda_kernel")
    assert verdict(ONE, None, ELSE)[0] == "not done"


def test_unknown_families_and_single_seeds_are_refused():
    with pytest.raises(ConfigError, match="cube_vit"):
        determinism.run(arguments(determinism, "--families", "cube_vitt"))
    with pytest.raises(ConfigError, match="2 or more"):
        precision.run(arguments(precision, "--seeds", "1"))
    with pytest.raises(ConfigError, match="--batch is 0"):
        precision.run(arguments(precision, "--batch", "0"))


def test_a_family_is_the_same_twice_and_precise_enough_on_the_cpu():
    words = ["--families", "cube_vit", "--steps", "3"]
    (same,) = determinism.run(arguments(determinism, *words))
    assert same.met
    assert same.rows[0]["fp32"]["result"] == "same bits"
    (near,) = precision.run(arguments(precision, *words, "--seeds", "2"))
    assert near.met
    assert near.rows[0]["scale"] == FIRST_SCALE
