"""Objectives: losses by task, and the metrics of the field.

`task_loss(task, outputs, batch)` is what predictive models share; methods that own their objective implement
`ZooModel.loss` themselves.
"""

from astrozoo.objectives.losses import register_task_loss, task_loss

__all__ = ["register_task_loss", "task_loss"]
