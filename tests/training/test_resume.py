from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path

import cases
import pytest
import torch

from astrozoo.errors import TrainingError
from astrozoo.training import TrainConfig, TrainResult, train
from astrozoo.training import checkpoint as saved
from astrozoo.training.trainer import Trainer


@pytest.fixture(autouse=True)
def one_thread():
    """The order of sums depends on the number of threads; the killed process has one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def exact_run(out: Path, *flags: str, callbacks=()) -> TrainResult:
    return train(cases.net(), cases.Line(augment=True), cases.exact(out, *flags), callbacks=callbacks)


def assert_same_state(one: Path, other: Path) -> None:
    first, second = (saved.latest_checkpoint(path / "checkpoints") for path in (one, other))
    assert first.state["step"] == second.state["step"]
    for group, tensors in first.tensors.items():
        assert tensors.keys() == second.tensors[group].keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, second.tensors[group][name]), f"{group}: {name}"
    assert first.state["history"] == second.state["history"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Folders of whole runs, by number of workers."""
    folders = {}

    def folder(workers: int) -> Path:
        if workers not in folders:
            folders[workers] = tmp_path_factory.mktemp("uninterrupted")
            exact_run(folders[workers], f"num_workers={workers}")
        return folders[workers]

    return folder


@pytest.mark.parametrize(("workers", "background"), [(0, "false"), (0, "true"), (2, "false")])
def test_run_killed_at_a_random_step_ends_with_the_same_bits(workers, background, uninterrupted, tmp_path):
    step = random.SystemRandom().choice(range(4, 24))
    flags = [f"num_workers={workers}", f"checkpoint.background={background}"]
    command = [sys.executable, cases.__file__, str(tmp_path), str(step), *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "last").exists()
    exact_run(tmp_path, *flags)
    reference = uninterrupted(workers)
    assert_same_state(reference, tmp_path)
    for name in ("best", "last"):
        ours, theirs = (folder / name / "model.safetensors" for folder in (tmp_path, reference))
        assert ours.read_bytes() == theirs.read_bytes(), f"killed after step {step}"
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_signal_finishes_the_step_saves_and_resumes_exactly(name, uninterrupted, tmp_path, caplog):
    before = signal.getsignal(signal.Signals[name])

    def send(trainer) -> None:
        if trainer.step == 10:
            os.kill(os.getpid(), signal.Signals[name])

    stopped = exact_run(tmp_path, callbacks=[send])
    assert (stopped.stopped, stopped.steps, stopped.metrics) == (name, 10, {})
    assert stopped.checkpoint.name == "step-00000010"
    assert f"{name}: finishing this step" in caplog.text
    assert signal.getsignal(signal.Signals[name]) is before
    exact_run(tmp_path)
    assert_same_state(uninterrupted(0), tmp_path)


def test_second_ctrl_c_stops_at_once_and_loses_nothing_saved(uninterrupted, tmp_path):
    def send(trainer) -> None:
        if trainer.step == 10:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        exact_run(tmp_path, callbacks=[send])
    assert saved.latest_checkpoint(tmp_path / "checkpoints").state["step"] == 9
    exact_run(tmp_path)
    assert_same_state(uninterrupted(0), tmp_path)


@pytest.mark.parametrize("moment", range(3))
def test_ctrl_c_amid_a_save_finishes_it(moment, uninterrupted, tmp_path, monkeypatch):
    write, calls = saved.write_tensors, []

    def interrupted(tensors, path):
        if "step-00000006" in str(path) or len(calls) == 4 + moment:
            os.kill(os.getpid(), signal.SIGINT)
        calls.append(path)
        write(tensors, path)

    monkeypatch.setattr(saved, "write_tensors", interrupted)
    stopped = exact_run(tmp_path)
    assert (stopped.stopped, stopped.steps) == ("SIGINT", 6)
    monkeypatch.setattr(saved, "write_tensors", write)
    exact_run(tmp_path)
    assert_same_state(uninterrupted(0), tmp_path)


def settings(out: Path, **changes) -> TrainConfig:
    return TrainConfig(
        **{"out": str(out), "batch_size": 4, "max_steps": 9, "device": "cpu", "checkpoint": {"every": 3, "keep": 3}}
        | changes
    )


def damage(file: Path, how: str) -> None:
    content = file.read_bytes()
    if how == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif how == "altered":
        file.write_bytes(content[:-4] + bytes(4 * [content[-1] ^ 255]))
    else:
        file.unlink()


@pytest.mark.parametrize(
    ("how", "name"),
    [
        ("truncated", "model.safetensors"),
        ("altered", "optimizer.safetensors"),
        ("missing", "rng.safetensors"),
        ("truncated", "state.json"),
        ("missing", "state.json"),
    ],
)
def test_damaged_last_checkpoint_falls_back_to_the_one_before_and_says_so(how, name, data, tmp_path, caplog):
    whole = train(cases.net(), data, settings(tmp_path))
    damage(tmp_path / "checkpoints" / "step-00000009" / name, how)
    with caplog.at_level("WARNING"):
        again = train(cases.net(), data, settings(tmp_path))
    assert "step-00000009 is damaged and was skipped" in caplog.text
    for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_all_checkpoints_damaged_is_an_error(data, tmp_path):
    train(cases.net(), data, settings(tmp_path))
    for folder in (tmp_path / "checkpoints").iterdir():
        damage(folder / "state.json", "missing")
    with pytest.raises(TrainingError, match=r"all 3 checkpoints .* are damaged"):
        train(cases.net(), data, settings(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed 0 -> 1"),
        ({"batch_size": 5}, "batch_size 4 -> 5"),
        ({"optim": {"name": "sgd"}}, "optim.name 'adamw' -> 'sgd'"),
    ],
)
def test_change_of_data_order_or_optimiser_refuses_to_resume(change, message, data, tmp_path):
    train(cases.net(), data, settings(tmp_path))
    with pytest.raises(TrainingError, match=message):
        train(cases.net(), data, settings(tmp_path, **change))


def test_checkpoint_of_another_model_is_refused(data, tmp_path):
    train(cases.net(), data, settings(tmp_path))
    with pytest.raises(TrainingError, match="model config width 8 -> 16"):
        train(cases.net(width=16), data, settings(tmp_path))


def test_change_of_the_data_refuses_to_resume_and_rounded_statistics_do_not(tmp_path):
    class Normalised(cases.FullLine):
        def __init__(self, *means: float) -> None:
            super().__init__()
            self.means = means

        def schema(self):
            return {"variables": ["tas"], "mean": list(self.means)}

    train(cases.net(), Normalised(288.0, 5.0), settings(tmp_path))
    train(cases.net(), Normalised(288.0 * (1 + 1e-9), 5.0), settings(tmp_path))
    with pytest.raises(TrainingError, match=r"data mean\[1\] 5 -> 6"):
        train(cases.net(), Normalised(288.0, 6.0), settings(tmp_path))


@pytest.mark.parametrize("resume", [False, "other"], ids=["anew", "from another folder"])
def test_run_that_does_not_go_on_from_a_folder_sets_all_of_it_aside(resume, data, tmp_path, caplog):
    old = tmp_path / "old"
    train(cases.net(), data, settings(old))
    kept = {name: (old / name / "model.safetensors").read_bytes() for name in ("best", "last")}
    log = (old / "log.jsonl").read_text()
    if resume:
        train(cases.net(), data, settings(tmp_path / "other", max_steps=3))
        resume = tmp_path / "other" / "checkpoints" / "step-00000003"
    # Without a validation split nothing is chosen as best, so any `best` here would be the old run's.
    data.val = None
    result = train(cases.net(), data, settings(old, max_steps=4), resume=resume)
    assert (result.steps, result.best) == (4, None)
    assert not (old / "best").exists()
    assert [path.name for path in saved.checkpoints(old / "checkpoints")][-1] == "step-00000004"
    assert (old / "checkpoints-before-1" / "step-00000009").is_dir()
    for name, weights in kept.items():
        assert (old / f"{name}-before-1" / "model.safetensors").read_bytes() == weights
    assert (old / "log-before-1.jsonl").read_text() == log
    assert "best-before-1" in caplog.text


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_signal_amid_the_last_save_ends_the_run_as_that_signal(name, data, tmp_path, monkeypatch):
    save = Trainer.save_model

    def interrupted(self, folder, scores=None):
        if folder == "last":
            os.kill(os.getpid(), signal.Signals[name])
        return save(self, folder, scores)

    monkeypatch.setattr(Trainer, "save_model", interrupted)
    result = train(cases.net(), data, settings(tmp_path))
    assert (result.stopped, result.steps, result.metrics) == (name, 9, {})
    assert (tmp_path / "last" / "model.safetensors").is_file()
    monkeypatch.undo()
    again = train(cases.net(), data, settings(tmp_path))
    assert again.stopped == "finished"
    assert again.metrics


def test_resume_from_a_named_checkpoint(data, tmp_path):
    whole = train(cases.net(), data, settings(tmp_path / "a"))
    again = train(cases.net(), data, settings(tmp_path / "b"), resume=tmp_path / "a" / "checkpoints" / "step-00000003")
    assert again.steps == 9
    for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_full_disk_while_checkpointing_keeps_the_last_good_one(data, tmp_path, monkeypatch):
    from astrozoo.errors import WeightsError
    from astrozoo.weights import files

    write = files.save_file

    def failing(tensors, path, metadata=None):
        if "step-00000006" in str(path) or calls["left"] == 0:
            raise OSError(28, "No space left on device")
        calls["left"] -= 1
        write(tensors, path, metadata=metadata)

    calls = {"left": 3}
    monkeypatch.setattr(files, "save_file", failing)
    with pytest.raises(WeightsError, match="No space left on device"):
        train(cases.net(), data, settings(tmp_path, evaluation={"every": 100}))
    assert [path.name for path in saved.checkpoints(tmp_path / "checkpoints")] == ["step-00000003"]
    monkeypatch.setattr(files, "save_file", write)
    assert train(cases.net(), data, settings(tmp_path)).steps == 9
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_going_on_from_an_earlier_step_keeps_what_it_writes(data, tmp_path):
    train(cases.net(), data, settings(tmp_path))
    first = tmp_path / "checkpoints" / "step-00000003"
    again = train(cases.net(), data, settings(tmp_path, max_steps=5, checkpoint={"every": 1, "keep": 1}), resume=first)
    assert [path.name for path in saved.checkpoints(tmp_path / "checkpoints")] == ["step-00000005"]
    assert again.checkpoint.is_dir()
    aside = saved.checkpoints(tmp_path / "checkpoints-before-1")
    assert [path.name for path in aside] == ["step-00000006", "step-00000009"]
    assert (tmp_path / "last-before-1").is_dir()
    assert json.loads((tmp_path / "last" / "config.json").read_text())["provenance"]["training"]["step"] == 5


@pytest.mark.parametrize("name", ["lamb", "cadan", "kron", "muon", "lion"])
@pytest.mark.filterwarnings("ignore:It is highly recommended")
def test_whatever_an_optimiser_remembers_is_resumed_exactly(name, data, tmp_path):
    whole = train(cases.net(), data, settings(tmp_path / "a", optim={"name": name}))
    middle = tmp_path / "a" / "checkpoints" / "step-00000006"
    again = train(cases.net(), data, settings(tmp_path / "b", optim={"name": name}), resume=middle)
    for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_run_that_stopped_early_stays_stopped(data, tmp_path):
    config = settings(tmp_path, max_steps=50, evaluation={"every": 2, "patience": 2, "min_delta": 1e9})
    first, second = (train(cases.net(), data, config) for _ in range(2))
    assert (second.stopped, second.steps) == ("early stopping", first.steps)


def test_run_killed_amid_the_commit_of_its_best_model_still_scores_with_that(data, tmp_path):
    whole = train(cases.net(), data, settings(tmp_path))
    weights = {name: item.clone() for name, item in whole.model.state_dict().items()}
    best = tmp_path / "best"
    # What a kill leaves between the rename that commits the new files and their moves: the old ones beside them.
    (best / ".astrozoo-committed").mkdir()
    for file in [path for path in best.iterdir() if path.is_file()]:
        content = file.read_bytes()
        file.rename(best / ".astrozoo-committed" / file.name)
        file.write_bytes(content[:-4] + bytes(4) if file.suffix == ".safetensors" else content)
    again = train(cases.net(), data, settings(tmp_path))
    assert again.metrics == whole.metrics
    for name, item in again.model.state_dict().items():
        assert torch.equal(item, weights[name]), name


def test_other_values_of_the_same_statistics_refuse_to_resume(tmp_path):
    class Digested(cases.Line):
        def __init__(self, digest: str) -> None:
            super().__init__()
            self.digest = digest

        def contents(self):
            return {"train x": "5f2c", "val x": self.digest}

    train(cases.net(), Digested("77aa"), settings(tmp_path))
    train(cases.net(), Digested("77aa"), settings(tmp_path))
    with pytest.raises(TrainingError, match="the run has changed: data values val x '77aa' -> '77ab'"):
        train(cases.net(), Digested("77ab"), settings(tmp_path))


def test_what_a_killed_run_has_left_half_written_is_removed(data, tmp_path):
    train(cases.net(), data, settings(tmp_path))
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for folder in (tmp_path, tmp_path / "checkpoints", tmp_path / "best", tmp_path / "last"):
        (folder / f".astrozoo-saving-{socket.gethostname()}-{gone.pid}-0").mkdir()
        (folder / f".astrozoo-saving-{socket.gethostname()}-{os.getpid()}-0").mkdir()
    (tmp_path / ".log.jsonl.0123456789ab").write_text("{}")
    train(cases.net(), data, settings(tmp_path))
    left = list(tmp_path.rglob(".*"))
    assert len(left) == 4
    assert all(f"-{os.getpid()}-" in path.name for path in left)  # of a process that still runs
