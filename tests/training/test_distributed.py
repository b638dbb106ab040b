"""Two and four processes give what one gives: launched once each, the four by torchrun, the two by accelerate."""

from __future__ import annotations

import json
from pathlib import Path

import cases
import distributed_case
import launching
import pytest
import torch

from astrozoo.errors import ConfigError
from astrozoo.training import TrainConfig, train
from astrozoo.training import checkpoint as saved


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> Path:
    """Folder of the run of one process, with that of the net whose loss is a mean over samples in it."""
    out = tmp_path_factory.mktemp("single")
    distributed_case.run(out)
    distributed_case.run(out / "samples", task="samples")
    return out


@pytest.fixture(scope="module")
def folders(single, tmp_path_factory) -> dict[int, Path]:
    """By number of processes, the folder of the runs of all cases, and of one continued from other processes."""
    folders = {4: tmp_path_factory.mktemp("four"), 2: tmp_path_factory.mktemp("two")}
    written_by = {4: single, 2: folders[4] / "fsdp2-3"}
    launchers = {4: launching.torchrun, 2: launching.accelerate}
    for processes, out in folders.items():
        checkpoint = written_by[processes] / "checkpoints" / "step-00000004"
        command = [*launchers[processes](processes), distributed_case.__file__, out]
        done = launching.run(*command, f"fsdp2-1={checkpoint}", f"ddp-3={checkpoint}", timeout=300)
        assert done.returncode == 0, done.stderr
    return folders


def assert_same_run(out: Path, expected: Path) -> None:
    ours, theirs = (saved.latest_checkpoint(folder / "checkpoints") for folder in (out, expected))
    assert ours.state["step"] == theirs.state["step"] == distributed_case.STEPS
    for group in ("model", "ema", "optimizer"):
        assert ours.tensors[group].keys() == theirs.tensors[group].keys()
        for name, tensor in ours.tensors[group].items():
            torch.testing.assert_close(tensor, theirs.tensors[group][name], rtol=1e-10, atol=1e-12, msg=name)
    for row, other in zip(ours.state["history"], theirs.state["history"], strict=True):
        assert row == pytest.approx(other, rel=1e-10)


def test_run_of_one_process_clips_gradients_and_ends_epochs_with_two_samples(single):
    lines = [json.loads(line) for line in (single / "log.jsonl").read_text().splitlines()]
    norms = [line["grad_norm"] for line in lines if line["event"] == "train"]
    assert max(norms) > 0.2
    history = saved.latest_checkpoint(single / "checkpoints").state["history"]
    losses = [row["loss"] for row in history]
    assert losses != sorted(losses, reverse=True)  # some evaluation is no improvement: nothing is saved after it
    assert len(distributed_case.GappyData().train) % 13 == 2


@pytest.mark.parametrize("case", distributed_case.CASES)
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_train_the_weights_of_one(processes, case, single, folders):
    assert_same_run(folders[processes] / case, single / "samples" if case == "samples" else single)


@pytest.mark.parametrize("case", ["fsdp2-1-resumed", "ddp-3-resumed"])
@pytest.mark.parametrize("processes", [2, 4])
def test_checkpoint_of_other_processes_is_continued(processes, case, single, folders):
    assert_same_run(folders[processes] / case, single)


@pytest.mark.parametrize("case", ["ddp-1", "ddp-3", "fsdp2-1", "fsdp2-3"])
@pytest.mark.parametrize("processes", [2, 4])
def test_checkpoint_of_processes_is_continued_by_one(processes, case, single, folders, tmp_path):
    checkpoint = folders[processes] / case / "checkpoints" / "step-00000004"
    distributed_case.run(tmp_path, resume=checkpoint)
    assert_same_run(tmp_path, single)


@pytest.mark.parametrize("case", ["fsdp2-1", "fsdp2-3"])
@pytest.mark.parametrize("processes", [2, 4])
def test_each_process_holds_its_shard_and_nothing_else(processes, case, folders):
    facts = [json.loads((folders[processes] / case / f"facts-{rank}.json").read_text()) for rank in range(processes)]
    total = facts[0]["total"]
    assert sum(fact["held"] for fact in facts) == total
    for fact in facts:
        assert fact["whole"] == fact["whole after evaluation"] == 0
        assert fact["wrapped"] == ["", "model.stem"]  # as the spec says
        assert fact["held"] < 1.3 * total / processes


@pytest.mark.parametrize("case", ["fsdp2-1", "fsdp2-3"])
@pytest.mark.parametrize("processes", [2, 4])
def test_only_the_first_process_gathers_what_it_writes(processes, case, folders):
    for rank in range(processes):
        fact = json.loads((folders[processes] / case / f"facts-{rank}.json").read_text())
        expected = fact["total"] if rank == 0 else 0
        assert [fact[f"gathered {group}"] for group in ("model", "ema", "optimizer")] == [
            expected,
            expected,
            2 * expected,
        ]


def test_sharding_needs_several_processes(data, tmp_path):
    with pytest.raises(ConfigError, match="expected several processes: start with torchrun"):
        train(cases.net(), data, TrainConfig(out=str(tmp_path), distributed={"strategy": "fsdp2"}))
