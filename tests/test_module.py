import pytest
import torch

from astrozoo.batch import Batch, collate, random_batch
from astrozoo.errors import ConfigError, InputError
from astrozoo.models.cube import unet


@pytest.fixture
def model():
    return unet.cube_unet_tiny.build(unet.cube_unet_tiny.config(**unet.FAMILY.miniature))


def test_meta_allocates_nothing_and_only_sets_the_dtype():
    model = unet.cube_unet_huge.build(device="meta", dtype=torch.bfloat16)
    assert all(parameter.is_meta and parameter.dtype == torch.bfloat16 for parameter in model.parameters())


def test_an_integer_dtype_is_refused():
    with pytest.raises(ConfigError, match=r"torch\.int32; a model needs a floating dtype"):
        unet.cube_unet_nano.build(dtype=torch.int32)


def test_sizes_that_should_agree_are_named(model):
    inputs = random_batch(model.spec).inputs
    with pytest.raises(InputError, match="lon is 32, but 64 in 'x'"):
        model(**{**inputs, "static": inputs["static"][..., :32]})


def test_a_missing_input_is_named(model):
    with pytest.raises(InputError, match=r"needs input condition\[batch, param=3\], which was not given"):
        model(random_batch(model.spec).inputs["x"], random_batch(model.spec).inputs["static"])


def test_autocast_accepts_any_floating_dtype_at_the_door(model):
    inputs = random_batch(model.spec, dtype=torch.bfloat16, sizes={"level": 1, "lat": 4, "lon": 8}).inputs
    with pytest.raises(InputError, match="as float32, got bfloat16"):
        model(**inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(**inputs).isfinite().all()


def test_checkpointing_that_a_family_cannot_do_is_refused_with_its_reason(model):
    import dataclasses

    capabilities = dataclasses.replace(model.spec.capabilities, grad_checkpointing="its state is updated in place")
    model.spec = dataclasses.replace(model.spec, capabilities=capabilities)
    with pytest.raises(ConfigError, match="cannot checkpoint gradients: its state is updated in place"):
        model.set_grad_checkpointing()


def test_a_batch_moves_floats_to_a_dtype_and_leaves_integers():
    batch = Batch(
        inputs={"x": torch.ones(2, 3), "kind": torch.ones(2, dtype=torch.int64)}, context={"lat": torch.ones(3)}
    )
    moved = batch.to(torch.float64)
    assert [tensor.dtype for tensor in moved.inputs.values()] == [torch.float64, torch.int64]
    assert moved.context["lat"].dtype == torch.float64
    assert len(moved) == 2


def test_collate_stacks_samples_and_shares_context():
    lat = torch.ones(3)
    samples = [
        Batch(inputs={"x": torch.full((3,), float(i))}, targets={"y": torch.zeros(1)}, context={"lat": lat})
        for i in range(4)
    ]
    batch = collate(samples)
    assert batch.inputs["x"][:, 0].tolist() == [0, 1, 2, 3]
    assert batch.targets["y"].shape == (4, 1)
    assert batch.context["lat"] is lat


def test_random_batches_are_reproducible_and_seeded(model):
    first, again, other = (random_batch(model.spec, seed=seed).inputs["x"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
