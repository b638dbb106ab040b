"""Checkpoints and models written beside training: the same bits, and errors that arrive."""

from __future__ import annotations

import json
import threading

import cases
import pytest
import torch

from astrozoo.errors import WeightsError
from astrozoo.training import checkpoint as saved
from astrozoo.training import saving, train
from astrozoo.training.saving import Saver, copied


def run(out, *flags, callbacks=()):
    return train(cases.net(), cases.Line(augment=True), cases.exact(out, *flags), callbacks=callbacks)


def held(monkeypatch, module, name):
    """The function of that name waits in other threads than this until the returned event is set."""
    real, go = getattr(module, name), threading.Event()

    def wait(*args, **kwargs):
        if threading.current_thread() is not threading.main_thread():
            assert go.wait(60)
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, wait)
    return go


def test_a_checkpoint_holds_the_state_of_its_step_though_training_goes_on(tmp_path, monkeypatch):
    """The write of step 3 is held until step 5; neither weights nor history of later steps must get into it."""
    go = held(monkeypatch, saved, "write_checkpoint")
    seen = []

    def release(trainer):
        if trainer.step == 4:
            trainer.history.append({"step": 4})
        if trainer.step == 5:
            seen.append((trainer.saved_step, (tmp_path / "a" / "checkpoints").exists()))
            go.set()
            trainer.saver.finish()
            seen.append(trainer.saved_step)
            trainer.history.clear()

    flags = ("checkpoint.keep=20", "evaluation.every=20")
    run(tmp_path / "a", *flags, "checkpoint.background=true", callbacks=[release])
    assert seen == [(-1, False), 3]
    run(tmp_path / "b", *flags)
    for ours, theirs in zip(*(saved.checkpoints(tmp_path / name / "checkpoints") for name in "ab"), strict=True):
        one, other = (json.loads((path / "state.json").read_text()) for path in (ours, theirs))
        assert one["files"] == other["files"], ours.name
        assert one["history"] == other["history"]
    for name in ("best", "last"):
        ours, theirs = (tmp_path / run / name / "model.safetensors" for run in "ab")
        assert ours.read_bytes() == theirs.read_bytes()


def test_an_error_of_the_thread_ends_training_at_a_later_step(tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise WeightsError("no space left")

    monkeypatch.setattr(saved, "write_checkpoint", full)
    with pytest.raises(WeightsError, match="no space left"):
        run(tmp_path, "checkpoint.background=true")
    assert not [thread for thread in threading.enumerate() if thread.name == "astrozoo-saving"]


def test_a_failed_step_waits_for_the_file_that_is_being_written(tmp_path):
    def fail(trainer):
        if trainer.step == 4:
            raise ValueError("of a callback")

    with pytest.raises(ValueError, match="of a callback"):
        run(tmp_path, "checkpoint.background=true", callbacks=[fail])
    assert saved.latest_checkpoint(tmp_path / "checkpoints").state["step"] == 3


def test_one_file_is_written_at_a_time():
    saver, order = Saver(background=True), []
    go = threading.Event()
    saver.save(lambda: go.wait(60) and order.append("first"), lambda _: order.append("noted"), beside=True)
    saver.poll()
    assert order == []
    threading.Timer(0.05, go.set).start()
    saver.save(lambda: order.append("second"), beside=True)
    saver.finish()
    assert order == ["first", "noted", "second"]


def test_no_copy_is_made_that_memory_has_no_room_for(monkeypatch):
    state = {"weight": torch.ones(1000)}
    for free, fits in ((16_001, True), (16_000, False)):
        monkeypatch.setattr(saving, "available_memory", lambda _device, free=free: free)
        assert Saver(background=True).fits(state) is fits
    assert not Saver(background=False).fits(state)


def test_copies_keep_layout_and_shared_memory():
    weight = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    copies = copied({"a": weight, "b": weight, "c": torch.empty(0)})
    assert copies["a"] is copies["b"]
    assert copies["a"].stride() == weight.stride()
    weight.zero_()
    assert copies["a"].abs().sum() > 0
