"""What the trainer keeps out of the memory of CUDA graphs; their replays are tested in tests/cuda."""

import pytest
import torch
from torch import nn

from astrozoo import TrainConfig
from astrozoo.errors import ConfigError
from astrozoo.training.graphs import Gradients, copied_out, graphed

GPU = torch.device("cuda")


@pytest.mark.parametrize("settings", [{}, {"compile": True}, {"cuda_graphs": True}], ids=str)
def test_nothing_is_recorded_unless_asked_for(settings):
    assert not graphed(TrainConfig(**settings), GPU, 1)


def test_recorded_are_compiled_steps_on_a_gpu_in_one_process():
    config = TrainConfig(compile=True, cuda_graphs=True)
    assert graphed(config, GPU, 1)
    assert not graphed(config, torch.device("cpu"), 2)
    with pytest.raises(ConfigError, match="cuda_graphs is True in 2 processes"):
        graphed(config, GPU, 2)


def test_copies_are_no_part_of_the_graph_that_made_them():
    loss = torch.ones(1, requires_grad=True) * 2
    copy = copied_out({"loss": loss})["loss"]
    with torch.no_grad():
        loss.zero_()
    assert copy.item() == 2
    assert not copy.requires_grad


class Replayed:
    """Backward passes that write their gradients to the same place each time, as replays do."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        self.places = [torch.empty_like(parameter) for parameter in parameters]

    def backward(self, value: float) -> None:
        for parameter, place in zip(self.parameters, self.places, strict=True):
            place.fill_(value)
            if parameter.grad is None:  # what autograd does: it takes the tensor itself, or adds to what is there
                parameter.grad = place
            else:
                parameter.grad += place


def test_gradients_add_up_over_replays_that_overwrite_each_other():
    parameters = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2, 2))]
    replayed, gradients = Replayed(parameters), Gradients(parameters)
    for step in range(3):
        for value in (1.0, 10.0):
            replayed.backward(value)
            gradients.take()
        for parameter in parameters:
            torch.testing.assert_close(parameter.grad, torch.full_like(parameter, 11.0), msg=f"step {step}")
        gradients.clear()
        assert all(parameter.grad.count_nonzero() == 0 for parameter in parameters)


def test_gradients_begin_anew_where_somebody_took_them_away():
    parameter = nn.Parameter(torch.zeros(3))
    replayed, gradients = Replayed([parameter]), Gradients([parameter])
    replayed.backward(1.0)
    gradients.take()
    parameter.grad = None
    for value in (2.0, 3.0):
        replayed.backward(value)
        gradients.take()
    assert parameter.grad.tolist() == [5.0] * 3
    gradients.clear()
    assert parameter.grad.tolist() == [0.0] * 3


def test_a_parameter_without_a_gradient_keeps_none():
    used, unused = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    gradients = Gradients([used, unused])
    Replayed([used]).backward(1.0)
    gradients.take()
    gradients.clear()
    assert unused.grad is None
