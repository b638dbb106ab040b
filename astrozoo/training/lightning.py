"""A model of the zoo for those who have their own Lightning trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from astrozoo.batch import Batch
from astrozoo.errors import BackendUnavailableError
from astrozoo.module import ZooModel
from astrozoo.training.config import TrainConfig
from astrozoo.training.optim import build_optimizer, learning_rate

if TYPE_CHECKING:
    import torch
    from lightning import LightningModule

__all__ = ["as_lightning_module"]


def as_lightning_module(model: ZooModel, config: TrainConfig | None = None) -> LightningModule:
    """`model` with its loss, and the optimiser and schedule of `config`, as a LightningModule.

    Data loaders must give `Batch`es (`collate_fn=data.collate`). Clipping, accumulation, precision and the number of
    steps are settings of Lightning's own Trainer.

    Raises:
        BackendUnavailableError: Lightning is not installed.
    """
    try:
        import lightning
    except ImportError as error:
        raise BackendUnavailableError(
            "as_lightning_module needs Lightning: pip install 'astrozoo[lightning]'; or use astrozoo.train without it."
        ) from error
    settings = config or TrainConfig()

    class ZooLightningModule(lightning.LightningModule):
        """Training and validation by `model.loss`."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *args: Any, **inputs: torch.Tensor) -> Any:
            """What the model makes of its inputs."""
            return self.model(*args, **inputs)

        def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:  # noqa: ARG002
            """A `Batch` knows how to move."""
            return batch.to(device)

        def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:  # noqa: ARG002
            """The loss, and its parts to the log."""
            parts = self.model.loss(batch)
            self.log_dict({f"train/{name}": value.detach() for name, value in parts.items()}, batch_size=len(batch))
            return parts["loss"]

        def validation_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
            """Losses on the validation data."""
            parts = self.model.loss(batch)
            self.log_dict({f"val/{name}": value for name, value in parts.items()}, batch_size=len(batch))

        def configure_optimizers(self) -> Any:
            """The optimiser of `config.optim`, with `config.schedule` per step."""
            from torch.optim.lr_scheduler import LambdaLR

            optimizer = build_optimizer(self.model, settings.optim)
            steps = settings.max_steps or int(self.trainer.estimated_stepping_batches)
            schedule = LambdaLR(optimizer, lambda step: learning_rate(settings.schedule, step, steps))
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    return ZooLightningModule()
