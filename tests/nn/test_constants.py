import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from astrozoo.nn import constants
from astrozoo.nn.constants import constant, fixed

CALLS = []


def squares(count, offset=0.0):
    CALLS.append(count)
    return np.arange(count) ** 2.0 + offset


class Scaled(torch.nn.Module):
    def forward(self, x):
        return x * constant(squares, fixed(x.shape[-1]), like=x)


def forget():
    CALLS.clear()
    constants._array.cache_clear()
    constants._tensor.cache_clear()


def test_a_table_is_made_once_per_arguments():
    forget()
    x = torch.zeros(3)
    first = constant(squares, 3, like=x)
    assert constant(squares, 3, like=x) is first
    assert constant(squares, 3, like=x.double()).dtype == torch.float64
    assert constant(squares, 4, like=x).shape == (4,)
    assert CALLS == [3, 4]


def test_half_precision_gets_single():
    assert constant(squares, 3, like=torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.float32


def test_meta_and_fake_tensors_get_shapes_and_leave_no_trace():
    forget()
    assert constant(squares, 3, like=torch.zeros(1, device="meta")).is_meta
    with FakeTensorMode():
        assert constant(squares, 3, like=torch.zeros(1)).shape == (3,)
    assert constant(squares, 3, like=torch.zeros(1)).tolist() == [0, 1, 4]


def test_a_table_made_in_inference_mode_serves_training():
    forget()
    x = torch.ones(3, requires_grad=True)
    with torch.inference_mode():
        Scaled()(x)
    Scaled()(x).sum().backward()
    assert x.grad.tolist() == [0, 1, 4]


def test_compiled_and_exported_programs_hold_the_table_of_each_size():
    forget()
    compiled = torch.compile(Scaled(), fullgraph=True, backend="aot_eager")
    for size in (3, 5, 6, 7):  # after the second, the compiler would take sizes for dynamic
        torch.testing.assert_close(compiled(torch.ones(2, size)), Scaled()(torch.ones(2, size)))
    forget()
    batch = torch.export.Dim("batch", min=1, max=9)
    program = torch.export.export(Scaled(), (torch.ones(2, 4),), dynamic_shapes=({0: batch},))
    torch.testing.assert_close(program.module()(torch.ones(3, 4)), Scaled()(torch.ones(3, 4)))
    assert len(list(program.graph.nodes)) < 8
