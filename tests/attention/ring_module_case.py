"""Run by test_ring.py through torchrun: the module on shards, beside `flash` with its weights on the whole sequence."""

from __future__ import annotations

import torch
from torch import distributed

import astrozoo
from astrozoo.attention.sequence_parallel import gather_sequence, shard_sequence
from astrozoo.processes import leave_process_group

LENGTH, DIM = 24, 16


def compare(causal: bool, layout: str, padded: bool) -> None:
    torch.manual_seed(0)
    options = {"dim": DIM, "num_heads": 4, "num_kv_heads": 2, "rope": True, "causal": causal, "dtype": torch.float64}
    whole = astrozoo.create_attention("flash", **options)
    split = astrozoo.create_attention("ring", group="world", layout=layout, **options)
    split.load_state_dict(whole.state_dict())
    x = torch.randn(2, LENGTH, DIM, dtype=torch.float64)
    key_mask = torch.arange(LENGTH)[None] < torch.tensor([[LENGTH], [LENGTH - 7]]) if padded else None
    want = whole(x, key_mask=key_mask)
    want.square().sum().backward()

    world = distributed.group.WORLD
    shard = shard_sequence(x, 1, group=world, layout=layout)
    mask = None if key_mask is None else shard_sequence(key_mask, 1, group=world, layout=layout)
    got = split(shard, key_mask=mask)
    got.square().sum().backward()
    torch.testing.assert_close(gather_sequence(got.detach(), 1, group=world, layout=layout), want.detach())
    for (name, ours), theirs in zip(split.named_parameters(), whole.parameters(), strict=True):
        total = ours.grad.clone()
        distributed.all_reduce(total)
        torch.testing.assert_close(total, theirs.grad, rtol=1e-10, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    for causal in (False, True):
        for layout in ("zigzag", "contiguous"):
            for padded in (False, True):
                compare(causal, layout, padded)
    leave_process_group()
