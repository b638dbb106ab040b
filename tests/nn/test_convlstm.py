import pytest
import torch
import torch.nn.functional as F

from astrozoo.nn import ConvLSTMCell, pad_grid

EDGES = {"longitude": "periodic", "poles": "cross"}


def cell(in_channels=2, channels=3, *, dtype=torch.float64, jitter=0.2, **options):
    torch.manual_seed(0)
    made = ConvLSTMCell(in_channels, channels, **EDGES, **options)
    for part in reversed(list(made.modules())):
        part.reset_parameters()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=jitter)
    return made.to(dtype)


def convolution(weight, x):
    """Written out: a sum over the shifts of a grid with its halo, zeros beyond top and bottom."""
    _, _, levels, rows, columns = weight.shape
    padded = F.pad(pad_grid(x, rows // 2, columns // 2), (0, 0, 0, 0, levels // 2, levels // 2))
    level, lat, lon = x.shape[2:]
    return sum(
        torch.einsum("oi,bizyx->bozyx", weight[:, :, k, j, i], padded[:, :, k : k + level, j : j + lat, i : i + lon])
        for k in range(levels)
        for j in range(rows)
        for i in range(columns)
    )


def reference(cell, x, h, c):
    """The paper's equations, gate by gate."""
    n = cell.channels
    w_x, w_h, b = cell.input.weight, cell.hidden.weight, cell.hidden.bias[:, None, None, None]
    w_c = torch.zeros(3, n, 1, 1, 1, dtype=x.dtype) if cell.peepholes is None else cell.peepholes

    def gate(index, peephole):
        rows = slice(index * n, (index + 1) * n)
        return convolution(w_x[rows], x) + convolution(w_h[rows], h) + peephole + b[rows]

    enter = torch.sigmoid(gate(0, w_c[0] * c))
    forget = torch.sigmoid(gate(1, w_c[1] * c))
    after = forget * c + enter * torch.tanh(gate(2, 0))
    output = torch.sigmoid(gate(3, w_c[2] * after))
    return output * torch.tanh(after), after


@pytest.mark.parametrize("peepholes", [False, True], ids=["plain", "peepholes"])
@pytest.mark.parametrize(("levels", "kernel", "level_kernel"), [(1, 3, 3), (1, 5, 1), (3, 3, 3), (3, 3, 1)])
def test_a_step_is_the_papers_equations(peepholes, levels, kernel, level_kernel):
    made = cell(kernel=kernel, level_kernel=level_kernel, peepholes=peepholes)
    x, h, c = (torch.randn(2, n, levels, 4, 6, dtype=torch.float64) for n in (2, 3, 3))
    torch.testing.assert_close(made(made.project(x), (h, c)), reference(made, x, h, c))


@pytest.mark.parametrize("peepholes", [False, True], ids=["plain", "peepholes"])
def test_no_state_is_a_state_of_zeros(peepholes):
    made = cell(peepholes=peepholes)
    gates = made.project(torch.randn(2, 2, 1, 4, 6, dtype=torch.float64))
    zeros = torch.zeros(2, 3, 1, 4, 6, dtype=torch.float64)
    torch.testing.assert_close(made(gates, None), made(gates, (zeros, zeros)))


def test_a_sequence_is_its_steps_and_may_be_cut_anywhere():
    made = cell(peepholes=True)
    gates = made.project(torch.randn(5, 2, 1, 4, 6, dtype=torch.float64)).split(1)
    hidden, state = made.sequence(gates)
    first, between = made.sequence(gates[:2])
    second, last = made.sequence(gates[2:], between)
    torch.testing.assert_close([*first, *second], hidden)
    torch.testing.assert_close(last, state)


def test_a_cell_without_input_runs_on_from_its_state():
    made = cell(0)
    state = tuple(torch.randn(2, 3, 1, 4, 6, dtype=torch.float64) for _ in range(2))
    with_zeros = cell(2)
    with_zeros.hidden.load_state_dict(made.hidden.state_dict())
    zeros = torch.zeros(2, 2, 1, 4, 6, dtype=torch.float64)
    torch.testing.assert_close(made(None, state), with_zeros(with_zeros.project(zeros), state))
    with pytest.raises(ValueError, match="takes no input"):
        made.project(zeros)
    with pytest.raises(ValueError, match="needs an input or a state"):
        made(None, None)


def test_forget_gates_start_open():
    made = cell(jitter=0.0)
    torch.testing.assert_close(made.hidden.bias, F.one_hot(torch.tensor(1), 4).double().repeat_interleave(3))


def test_memory_is_kept_in_float32_under_autocast():
    made = cell(dtype=torch.float32)
    x = torch.randn(2, 2, 1, 4, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h, c = made(made.project(x), None)
        h, c = made(made.project(x), (h, c))
    assert (h.dtype, c.dtype) == (torch.bfloat16, torch.float32)
