"""The benchmark on sizes that take no time: what it compares, counts and holds to targets, not how fast anything is."""

import argparse
import json

import pytest
import torch

import astrozoo
from astrozoo.bench import attention
from astrozoo.bench.attention import cases, compiling, kernels, speed
from astrozoo.bench.attention.cases import WINDOW, case_of, full_pairs, grid_shape
from astrozoo.bench.attention.compiling import compiled_lengths
from astrozoo.bench.attention.contestants import Contestant, build, relative_errors, seam
from astrozoo.bench.attention.counting import count_flops, exponents, fitted_exponent
from astrozoo.bench.attention.interleave import Effort, interleave
from astrozoo.bench.attention.layers import layer, peer_layer
from astrozoo.bench.attention.memory import peak_bytes
from astrozoo.bench.attention.peers import peer_of
from astrozoo.bench.attention.race import Errors, race
from astrozoo.bench.attention.setting import Setting
from astrozoo.bench.harness import report
from astrozoo.errors import BackendUnavailableError, ConfigError

SMALL = Setting("cpu", torch.float32, batch=1, heads=2, head_dim=16, tokens=64, causal=True)
ONCE = Effort(rounds=1, most=1, seconds=0)
NAMES = astrozoo.list_attentions(plugin="astrozoo")


def arguments(*words):
    parser = argparse.ArgumentParser()
    attention.add_arguments(parser)
    return parser.parse_args(words)


# -- cases -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_attention_can_be_timed_and_is_right(name):
    causal = case_of(name).is_causal(astrozoo.attention_info(name))
    contestant = seam(name, SMALL.replace(causal=causal))
    out, gradient = relative_errors(contestant)
    assert out < 1e-5
    assert gradient < 1e-5
    assert contestant.forward().shape[2] == SMALL.tokens


def counted():
    """Names and causality for which pairs are counted and can be compared with weights."""
    for name in NAMES:
        spec, case = astrozoo.attention_info(name), case_of(name)
        if case.pairs and spec.softmax and name not in ("differential", "dilated"):
            yield name, case.is_causal(spec)
            if case.is_causal(spec):
                yield name, False


@pytest.mark.parametrize(("name", "causal"), list(counted()))
def test_pairs_are_those_with_a_weight(name, causal):
    setting = SMALL.replace(tokens=WINDOW + 130, heads=1, causal=causal)
    module = build(name, setting)
    x = torch.randn(1, setting.tokens, setting.width)
    context = torch.randn_like(x) if module.spec.needs_context else None
    geometry = case_of(name).geometry(setting)
    aux = module.forward_with(x, context, causal=causal, geometry=geometry, want=("weights",))[1]
    assert int((aux["weights"] != 0).sum()) == case_of(name).pairs(setting)


def test_pairs_of_several_maps_are_counted_in_each():
    assert case_of("differential").pairs(SMALL) == 2 * full_pairs(SMALL)
    setting = SMALL.replace(tokens=2048, causal=False)
    assert case_of("dilated").pairs(setting) == 16 * 128**2 + 4 * 128**2 + 128**2


def test_grids_are_as_square_as_the_length_allows():
    assert [grid_shape(tokens) for tokens in (4096, 2048, 45, 7)] == [(64, 64), (32, 64), (5, 9), (1, 7)]


# -- memory ------------------------------------------------------------------------------------------------------------


def test_peak_counts_what_is_alive_at_once():
    def work():
        first = torch.ones(1000)
        second = first + 1  # 8000 bytes
        del first
        return second.view(10, 100) + 1

    assert peak_bytes(work) == 8000


def test_peak_counts_no_inputs_and_no_views_of_them():
    x = torch.ones(1000)
    assert peak_bytes(lambda: x.view(10, 100).t()) == 0
    assert peak_bytes(lambda: x.view(10, 100) * 2) == 4000


def test_peak_counts_what_autograd_keeps_and_the_backward_pass():
    x = torch.ones(1000, requires_grad=True)
    assert peak_bytes(lambda: torch.autograd.grad((x.exp() * 2).sum(), x)) >= 8000


# -- contestants -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [True, False])
def test_kernels_and_naive_attention_compute_what_flash_does(causal):
    ours = seam("flash", SMALL.replace(causal=causal))
    found, notes = kernels.kernels(ours, SMALL.replace(causal=causal))
    assert [kernel.name for kernel in found] == ["sdpa"]
    assert notes == []
    for peer in (*found, kernels.naive(ours, SMALL.replace(causal=causal))):
        torch.testing.assert_close(peer.forward(), ours.forward(), rtol=1e-4, atol=1e-5)
        assert peer.inputs is ours.inputs


def test_error_of_a_wrong_kernel_is_seen():
    ours = seam("flash", SMALL)
    wrong = Contestant("wrong", lambda q, k, v: 1.5 * ours.run(q, k, v), ours.inputs, ours.reference)
    assert relative_errors(wrong) == pytest.approx((0.5, 0.5), rel=1e-4)


def test_layer_of_pytorch_is_causal_although_its_mask_is_not_read():
    peer = peer_layer("flash", SMALL)
    x = peer.inputs[0]
    changed = x.detach().clone()
    changed[:, -1] += 1
    assert torch.equal(peer.run(x)[:, :-1], peer.run(changed)[:, :-1])
    assert len(peer.train()) == 1 + len(layer("flash", SMALL).inputs[1:]) - 2  # one projection for q, k and v


@pytest.mark.parametrize("name", ["linear", "gated_delta", "mamba2", "neighborhood"])
def test_peers_that_need_a_gpu_say_so(name):
    ours = seam(name, SMALL.replace(causal=case_of(name).is_causal(astrozoo.attention_info(name))))
    assert "need a GPU" in peer_of(ours, SMALL)


@pytest.mark.parametrize("name", ["linear", "gated_delta", "mamba2"])
def test_arguments_of_the_peers_kernels_mean_the_same(name, monkeypatch):
    """The packages run on GPUs only: a stand-in computes, token by token, what their documentation says."""
    from astrozoo.bench.attention import peers

    class Package:
        @staticmethod
        def chunk_simple_gla(q, k, v, g=None, *, scale):
            return recurrence(q, k, v, g, None, scale), None

        @staticmethod
        def chunk_gated_delta_rule(q, k, v, g, beta, *, scale):
            return recurrence(q, k, v, g, beta, scale), None

        @staticmethod
        def chunk_linear_attn(q, k, v, *, scale, normalize):
            assert normalize
            weight = (scale * q * k.cumsum(1)).sum(-1, keepdim=True)
            return recurrence(q, k, v, None, None, scale) / weight, None

    monkeypatch.setattr(peers.importlib, "import_module", lambda name: Package)
    setting = SMALL.replace(tokens=12)
    ours = seam(name, setting)
    peer = peer_of(ours, setting.replace(device="cuda"))
    torch.testing.assert_close(peer.forward(), ours.forward(), rtol=1e-4, atol=1e-5)


def recurrence(q, k, v, g, beta, scale):
    """S = exp(g) S + k v', where there is a beta without what k held; scale S'q. All (batch, token, head, ...)."""
    state = q.new_zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3])
    out = []
    for t in range(q.shape[1]):
        if g is not None:
            state = state * g[:, t, :, None, None].exp()
        write = v[:, t]
        if beta is not None:
            write = beta[:, t, :, None] * (write - (state * k[:, t, :, :, None]).sum(-2))
        state = state + k[:, t, :, :, None] * write[..., None, :]
        out.append(scale * (state * q[:, t, :, :, None]).sum(-2))
    return torch.stack(out, dim=1)


# -- the race ----------------------------------------------------------------------------------------------------------


def test_one_that_fails_is_left_out_and_the_others_are_measured():
    ours = seam("flash", SMALL)

    def fails(*inputs):
        raise RuntimeError("no such kernel\nand a long story")

    samples, failures = interleave([ours, Contestant("peer", fails, ours.inputs)], "cpu", ONCE)
    assert set(samples) == {"flash, forward", "flash, forward+backward"}
    assert failures["peer, forward"] == "RuntimeError: no such kernel"


def test_one_without_a_backward_keeps_its_forward():
    ours = seam("flash", SMALL)
    forward_only = Contestant("peer", lambda q, k, v: (q + k + v).detach(), ours.inputs)
    samples, failures = interleave([ours, forward_only], "cpu", ONCE)
    assert "peer, forward" in samples
    assert set(failures) == {"peer, forward+backward"}


def test_failure_of_ours_is_a_missed_target_and_that_of_a_peer_a_note():
    def make(setting):
        def fails(*inputs):
            raise RuntimeError("broken")

        return [
            seam("flash", setting),
            Contestant("ours", fails, (), ours=True),
            Contestant("theirs", fails, ()),
        ], []

    comparison = race("test", SMALL, make, ONCE)
    assert [target.label for target in comparison.targets] == [
        "failures of ours, forward", "failures of ours, forward+backward",
    ]  # fmt: skip
    assert not comparison.met
    assert "theirs, forward failed: RuntimeError: broken" in comparison.notes


def test_size_that_cannot_be_set_up_does_not_end_the_run():
    def make(setting):
        raise MemoryError("too large")

    comparison = race("test", SMALL, make, ONCE)
    assert not comparison.met
    assert comparison.rows == []


def test_flash_is_held_to_the_fastest_kernel():
    comparison = speed.kernel_race(SMALL, ONCE, Errors(speed.kernel_field, 32))
    assert [target.limit for target in comparison.targets] == [1.02, 1.02]
    assert "errors are those at 32 tokens" in comparison.notes


def test_wrong_kernel_is_not_what_flash_is_held_to(monkeypatch):
    def field(setting):
        ours = seam("flash", setting)
        return [ours, Contestant("wrong", lambda q, k, v: q + k + v, ours.inputs, ours.reference)], []

    monkeypatch.setattr(speed, "kernel_field", field)
    comparison = speed.kernel_race(SMALL, ONCE, Errors(field, 64))
    assert comparison.targets == []
    assert any("wrong is not compared" in note for note in comparison.notes)


def test_promises_hold_from_their_lengths_on(monkeypatch):
    monkeypatch.setattr(speed, "_LONG", 32)
    monkeypatch.setattr(speed, "_CROSSING", 64)
    monkeypatch.setattr(speed, "_SPARSE_FROM", 32)
    monkeypatch.setattr(cases, "WINDOW", 8)
    names = ["flash", "linear", "sliding_window"]
    field = speed.attention_field(names)

    def labels(tokens, longest):
        setting = SMALL.replace(tokens=tokens)
        found = speed.attention_race(setting, field, ONCE, Errors(field, 64), longest=longest)
        return [target.label for target in found.targets if "forward+" in target.label]

    assert labels(16, longest=False) == []
    assert [label.split(" over")[0] for label in labels(32, longest=True)] == [
        "time of naive, forward+backward",
        "peak memory of flash, forward+backward",
        "speed-up of sliding_window",
    ]
    assert "time of linear, forward+backward over flash, forward+backward" in labels(64, longest=False)


def test_naive_is_left_out_where_it_does_not_fit(monkeypatch):
    monkeypatch.setattr(speed, "available_memory", lambda device: 1000)
    contestants, notes = speed.attention_field([])(SMALL)
    assert [contestant.name for contestant in contestants] == ["flash"]
    assert "naive was left out" in notes[0]


# -- cost and compilation ----------------------------------------------------------------------------------------------


def test_operations_are_those_of_two_products():
    assert count_flops("flash", SMALL.replace(device="meta")) == 2 * 2 * 64 * 64 * 16 * 2


def test_exponent_of_a_power_is_found():
    assert fitted_exponent([10, 100, 1000], [3 * n**1.5 for n in (10, 100, 1000)]) == pytest.approx(1.5)


def test_exponents_are_held_to_what_is_promised():
    comparison = exponents(["flash", "linear"], heads=1, head_dim=16)
    assert [row["exponent"] for row in comparison.rows] == ["2.000", "1.000"]
    (target,) = comparison.targets
    assert target.met
    assert "linear" in target.label


def test_graphs_are_counted_and_a_softmax_of_its_own_is_seen(monkeypatch):
    monkeypatch.setattr(compiling, "LENGTHS", (16, 36, 45))
    comparison = compiled_lengths(["flash"], SMALL, "eager")
    (row,) = comparison.rows
    assert row["graphs"] >= 1
    assert row["unfused"] == 0
    assert comparison.met
    with astrozoo.attention.use_backend("math"):
        assert compiled_lengths(["flash"], SMALL, "eager").rows[0]["unfused"] > 0


# -- the whole ---------------------------------------------------------------------------------------------------------


def test_run_gives_tables_json_and_a_picture(tmp_path, capsys):
    words = ["--names", "flash", "linear", "--lengths", "16", "32", "--heads", "1", "--rounds", "1", "--causal"]
    comparisons = attention.run(arguments(*words, "--sections", "speed", "--plot", str(tmp_path / "times.png")))
    assert (tmp_path / "times.png").read_bytes().startswith(b"\x89PNG")
    report(comparisons, json_file=str(tmp_path / "times.json"))
    shown = capsys.readouterr().out
    assert "GB/s" in shown
    assert "FLOP/s" in shown
    document = json.loads((tmp_path / "times.json").read_text())
    rows = [row for comparison in document["comparisons"] for row in comparison.get("rows", ())]
    linear = next(row for row in rows if row.get("table") == "attentions" and row["name"] == "linear")
    assert linear["peer"] == "flash"
    assert {"seconds", "quartiles", "peak_bytes", "bytes_per_second", "over_peer"} == set(linear["forward+backward"])
    assert linear["error"] < 1e-5


def test_time_limit_leaves_tables_out():
    words = ["--names", "flash", "--lengths", "16", "--rounds", "1", "--sections", "exponents", "compile"]
    (comparison,) = attention.run(arguments(*words, "--minutes", "0"))
    assert any("left out" in note for note in comparison.notes)


def test_gpu_that_is_not_there_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendUnavailableError, match="NVIDIA GPU"):
        attention.run(arguments("--device", "cuda"))


def test_dtype_that_does_not_exist_is_told():
    with pytest.raises(ConfigError, match="floaty"):
        attention.run(arguments("--dtypes", "floaty"))


def test_full_pairs_are_half_where_causal():
    assert full_pairs(SMALL) == 64 * 65 / 2
    assert full_pairs(SMALL.replace(causal=False)) == 64 * 64
