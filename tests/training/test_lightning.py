from __future__ import annotations

import cases
import pytest
import torch
from torch.utils.data import DataLoader

from astrozoo.batch import collate
from astrozoo.training import TrainConfig, as_lightning_module


@pytest.mark.filterwarnings("ignore")  # Lightning advises more workers, loggers and threads
def test_model_trains_in_lightnings_own_trainer(data, tmp_path):
    import lightning

    model = cases.net(dropout=0.0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    module = as_lightning_module(model, TrainConfig(optim={"lr": 0.02}, schedule={"warmup": 2}))
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=40, max_epochs=20, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    loaders = [DataLoader(split, 4, collate_fn=collate) for split in (data.train, data.val)]
    first = trainer.validate(module, loaders[1], verbose=False)[0]["val/loss"]
    trainer.fit(module, *loaders)
    assert trainer.global_step == 40
    assert trainer.callback_metrics["val/loss"].item() < first
    assert any(not torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert trainer.optimizers[0].param_groups[0]["lr"] < 0.02
