"""Checks of values: the fast path against the readable one, at any size, and what follows from the formula."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from astrozoo.attention import Attention
from astrozoo.testing.attention.cases import agree, distance, equals_reference, influence
from astrozoo.testing.attention.subject import HEADS, AttentionSubject
from astrozoo.testing.report import NotApplicable, require

__all__: list[str] = []


def value(subject: AttentionSubject) -> None:
    """The fast path equals the readable reference: plain, with every declared term, and with all together."""
    attention = subject.build()
    for case in subject.cases():
        declared = subject.declared()
        together = [declared] if len(declared) > 1 else []
        for names in [(), *((name,) for name in declared), *together]:
            for order in subject.orders():
                terms = {**order, **subject.terms(case, *names)}
                equals_reference(attention, case, f"{case.label} with {names} {order}", **terms)
    grown = subject.build(seed=3)
    agree(subject.own_case()(grown), subject.own_case().reference(grown), "other weights")


def options(subject: AttentionSubject) -> None:
    """Every common option is honoured, in value, or refused by name: scale, qk_norm, rope, bias, context_dim."""
    case = subject.own_case()
    plain = case(subject.build())
    for option in ({"scale": 0.9}, {"qk_norm": True}, {"rope": True}, {"rope": {"fraction": 0.5}}, {"bias": True}):
        attention = subject.build_or_refusal(**option)
        if attention is None:
            continue
        for order in subject.orders():
            equals_reference(attention, case, f"with {option} {order}", **order)
        require(distance(case(attention), plain) > 1e-6, f"{option} changes nothing")
    if subject.spec.cross:
        attention = subject.build(context_dim=20)
        cross = subject.case(6, 6)
        cross = cross.replace(context=cross.source[..., :20])
        equals_reference(attention, cross, "with context_dim=20")
    explicit = subject.build_or_refusal(head_dim=6, scale=6**-0.5)
    if explicit is not None and subject.spec.softmax:
        default = subject.build(head_dim=6)
        agree(case(explicit), case(default), "scale=head_dim**-0.5 is not the default scale")


def head_dims(subject: AttentionSubject) -> None:
    """An explicit head_dim and v_head_dim hold, odd ones too; inputs need not be contiguous."""
    case = subject.own_case()
    for sizes in ({"head_dim": 12}, {"head_dim": 5}, {"head_dim": 6, "v_head_dim": 10}, {"v_head_dim": 3}):
        attention = subject.build_or_refusal(**sizes)
        if attention is None:
            continue
        for name, size in sizes.items():
            require(getattr(attention.config, name) == size, f"{name}={size} became {getattr(attention.config, name)}")
        width = attention.config.value_dim
        heads = case.looking(attention, "heads")[1]
        expected = (2, HEADS, case.sizes[1], width)
        require(tuple(heads.shape) == expected, f"{sizes} gives heads of shape {tuple(heads.shape)}, not {expected}")
        if "head_dim" in sizes:
            narrow = subject.build(head_dim=4, v_head_dim=width)
            require(_numel(attention) != _numel(narrow), f"{sizes} makes no other parameters than head_dim 4")
        equals_reference(attention, case, f"with {sizes}")
    attention = subject.build()
    for label, spread in (("transposed", _transposed), ("expanded", _expanded), ("strided", _strided)):
        odd = case.replace(x=spread(case.x), context=None if case.context is None else spread(case.context))
        dense = odd.replace(x=odd.x.contiguous(), context=None if odd.context is None else odd.context.contiguous())
        agree(odd(attention), dense(attention), f"{label} inputs")


def odd_lengths(subject: AttentionSubject) -> None:
    """Any length works: one token, and those that are no multiple of a block."""
    attention = subject.build()
    for length in (1, 2, 3, 37, 64, 65, 127, 130, 300):
        case = subject.own_case(length, batch=1)
        for order in subject.orders():
            equals_reference(attention, case, f"{length} tokens {order}", **order)
    if subject.spec.cross and subject.movable:
        for queries, keys in ((1, 33), (33, 1), (5, 130), (130, 5)):
            case = subject.case(queries, keys, batch=1)
            equals_reference(attention, case, f"{queries} queries on {keys} keys")


def lengths(subject: AttentionSubject) -> None:
    """16, 256 and 4096 tokens equal the reference; the longest in some rows where a context allows to ask for some."""
    attention = subject.build()
    for length in (16, 256):
        case = subject.own_case(length, batch=1)
        for order in subject.orders():
            equals_reference(attention, case, f"{length} tokens {order}", **order)
    attention = subject.build(num_heads=1, head_dim=4)
    case = subject.own_case(4096, batch=1)
    with torch.no_grad():
        if subject.spec.cross and subject.movable:
            some = torch.tensor([0, 1, 511, 512, 2048, 4000, 4095])
            asked = case.queries_at(some)
            rows = case(attention)[:, some]
            agree(asked(attention), rows, "some of 4096 queries, alone and together")
            agree(rows, asked.reference(attention), "4096 tokens")
            if subject.spec.causal and not subject.spec.needs_context and case.geometry is None:
                rows = case(attention, causal=True)[:, -9:]
                last = case.queries_at(torch.arange(4087, 4096))
                agree(rows, last.reference(attention, causal=True), "4096 tokens, causal")
        else:
            order = subject.orders()[-1]
            equals_reference(attention, case, f"4096 tokens {order}", **order)


def equal_tokens(subject: AttentionSubject) -> None:
    """A mean of equal tokens is that token: what is exact gives for many copies what it gives for one."""
    if not subject.spec.exact:
        raise NotApplicable("it is no weighted mean of values: its spec says that it is not exact")
    attention = subject.build()
    one = subject.own_case(1)
    many = subject.own_case(12)
    context = None if many.context is None else one.source.expand(many.context.shape)
    many = many.replace(x=one.x.expand(many.x.shape), context=context)
    for order in subject.orders():
        agree(many(attention, **order), one(attention).expand(many.x.shape), f"12 copies of a token {order}")


def cross(subject: AttentionSubject) -> None:
    """A context of as many tokens is not mistaken for the queries; the tokens themselves as context change nothing."""
    subject.needs_cross()
    attention = subject.build()
    case = subject.case(10, 10)
    equals_reference(attention, case, "equal lengths")
    other = case.replace(context=case.source.flip(0))
    require(distance(other(attention), case(attention)) > 1e-3, "another context changes nothing")
    if not subject.spec.needs_context:
        agree(case.replace(context=case.x)(attention), case.replace(context=None)(attention), "the tokens as context")
    moved = influence(attention, case, through="x")
    off = moved.masked_fill(torch.eye(10, dtype=torch.bool), 0)
    require(off.max().item() == 0, "a query is moved by another query")


def batch_independent(subject: AttentionSubject) -> None:
    """A row depends on no other row of the batch, whatever is in it."""
    attention = subject.build()
    for case in subject.cases(batch=3):
        terms = subject.terms(case, *subject.declared())
        for order in subject.orders():
            y = case(attention, **order, **terms)
            noise = torch.randn(case.source[1:2].shape, dtype=torch.float64) * 50
            other = case.with_source(torch.cat((case.source[:1], noise, case.source[2:])))
            changed = other(attention, **order, **terms)
            agree(changed[::2], y[::2], f"{case.label} {order}: rows beside one that changed", 1e-12)
            if subject.spec.geometry != "graph":
                alone = case.rows(slice(2, 3))
                single = {name: _row(term, 2) for name, term in terms.items()}
                agree(alone(attention, **order, **single), y[2:3], f"{case.label} {order}: a row alone", 1e-10)


def key_permutation(subject: AttentionSubject) -> None:
    """The order of keys does not matter where the reference says so: a permutation of keys and their masks."""
    attention = subject.build()
    tried = 0
    for case in subject.cases():
        if not subject.movable or not subject.allows(causal=False):
            continue
        order = torch.randperm(case.sizes[2], generator=torch.Generator().manual_seed(2))
        terms = subject.terms(case, *subject.declared("mask", "key_mask", "bias"))
        terms = {} if case.context is None else terms
        moved = {name: term[..., order] for name, term in terms.items()}
        permuted = case.keys_at(order)
        rows = order if case.context is None else slice(None)
        expected = case.reference(attention, causal=False, **terms)[:, rows]
        if distance(permuted.reference(attention, causal=False, **moved), expected) < 1e-9:
            tried += 1
            y = case(attention, causal=False, **terms)[:, rows]
            agree(permuted(attention, causal=False, **moved), y, f"{case.label}: keys in another order")
    if not tried:
        raise NotApplicable("where a key stands matters to it, by geometry, by causality or by its reference")


def grouped_query(subject: AttentionSubject) -> None:
    """Fewer key heads equal as many with the weights of each repeated for its group of adjacent query heads."""
    if not subject.spec.grouped_query:
        subject.must_refuse("num_kv_heads", lambda: subject.build(num_kv_heads=2))
        raise NotApplicable("it declares no grouped queries, and refuses them")
    full = subject.build(num_kv_heads=HEADS)
    case = subject.own_case()
    for kv_heads in (1, 2, HEADS):
        attention = subject.build(num_kv_heads=kv_heads, seed=kv_heads)
        equals_reference(attention, case, f"num_kv_heads={kv_heads}")
        if kv_heads < HEADS:
            require(_numel(attention) < _numel(full), f"num_kv_heads={kv_heads} saves no parameters")
        if _repeat_heads(attention, full, HEADS // kv_heads):
            agree(case(attention), case(full), f"num_kv_heads={kv_heads} and the same heads repeated")


def _repeat_heads(grouped: Attention, full: Attention, groups: int) -> bool:
    """Give `full` the weights of `grouped`, repeated; False where their layout does not tell the heads."""
    state = full.state_dict()
    for name, tensor in grouped.state_dict().items():
        if tensor.shape != state[name].shape:
            if tensor.shape[0] * groups != state[name].shape[0]:
                return False
            heads = tensor.unflatten(0, (HEADS // groups, -1))
            tensor = heads.repeat_interleave(groups, dim=0).flatten(0, 1)
        state[name] = tensor
    full.load_state_dict(state)
    return True


def _row(term: Any, row: int) -> Any:
    return tuple(part[row : row + 1] for part in term) if isinstance(term, tuple) else term[row : row + 1]


def _numel(attention: Attention) -> int:
    return sum(parameter.numel() for parameter in attention.parameters())


def _transposed(x: Tensor) -> Tensor:
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def _expanded(x: Tensor) -> Tensor:
    return x[:1].expand(x.shape)


def _strided(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=1)[:, ::2]
