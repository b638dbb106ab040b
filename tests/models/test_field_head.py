"""The head of models of fields: linear within a sample, blind to how strong the sample's features are."""

import numpy as np
import pytest
import torch

from astrozoo.models.fields import FieldConfig, FieldHead


def make(poles="cross", width=6, outputs=3):
    longitude = "periodic" if poles == "cross" else "regional"
    head = FieldHead(FieldConfig(out_vars=outputs, longitude=longitude, poles=poles), width).double()
    torch.nn.init.normal_(head.weight)
    torch.nn.init.normal_(head.bias)
    return head


@pytest.mark.parametrize("poles", ["cross", "edge"])
def test_features_are_divided_by_their_root_mean_square_by_area(poles):
    head = make(poles)
    x = torch.randn(2, 6, 3, 8, 5, dtype=torch.float64)
    bounds = np.deg2rad(np.linspace(-90, 90, 9))
    area = np.diff(np.sin(bounds)) if poles == "cross" else np.ones(8)
    weight = np.broadcast_to((area / area.sum())[:, None], (6, 3, 8, 5)) / (6 * 3 * 5)
    expected = np.stack(
        [
            np.einsum("oc,clij->olij", head.weight.detach().numpy()[:, :, 0, 0, 0], sample)
            / np.sqrt((weight * sample**2).sum())
            + head.bias.detach().numpy()[:, None, None, None]
            for sample in x.numpy()
        ]
    )
    np.testing.assert_allclose(head(x).detach().numpy(), expected, rtol=1e-5, atol=1e-5)


def test_a_stronger_sample_gives_the_same_fields_and_a_weak_cell_stays_weak():
    head = make()
    x = torch.randn(1, 6, 1, 8, 16, dtype=torch.float64)
    torch.testing.assert_close(head(100 * x), head(x), rtol=1e-5, atol=1e-5)
    x[..., 4, 7] *= 1e-3
    weak = head(x)[0, :, 0, 4, 7] - head.bias
    assert weak.abs().max() < 0.02


def test_features_of_zeros_give_the_bias():
    head = make()
    x = torch.zeros(1, 6, 1, 4, 8, dtype=torch.float64, requires_grad=True)
    y = head(x)
    assert torch.equal(y, head.bias[:, None, None, None].expand_as(y[0])[None])
    y.sum().backward()
    assert x.grad.isfinite().all()
