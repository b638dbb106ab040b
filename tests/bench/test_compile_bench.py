"""What torch.compile makes of training steps: the counts against modules whose behaviour is known, and a table."""

import argparse

import pytest
import torch

from astrozoo import registry
from astrozoo.bench import compile as bench
from astrozoo.bench.compile import case, report
from astrozoo.bench.compile.graphs import count_graphs
from astrozoo.bench.harness import Samples
from astrozoo.bench.side_by_side import Outcome
from astrozoo.errors import ConfigError
from astrozoo.testing.subject import Subject
from astrozoo.training.runtime import LossModule

SIZES = (8, 4, 6, 2)


def arguments(*words):
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return parser.parse_args(words)


class AnySize(torch.nn.Linear):
    """Takes every size."""

    def __init__(self):
        super().__init__(3, 3)

    def forward(self, x):
        return super().forward(x).square().mean()


class EachSize(AnySize):
    """Makes a constant of the size."""

    def forward(self, x):
        return super().forward(x) * [float(size) for size in range(10)][x.shape[0]]


class EachStep(AnySize):
    """Makes a constant of how often it was called."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x) * [1.0, 2.0, 3.0, 4.0, 5.0, 6.0][self.calls]


class Broken(AnySize):
    """Breaks the graph."""

    def forward(self, x):
        x = 2 * x
        torch._dynamo.graph_break()
        return super().forward(x)


def counted(module, sizes=SIZES):
    compiled = torch.compile(module, backend="aot_eager")
    return count_graphs(lambda x: compiled(x).backward(), [torch.randn(size, 3) for size in sizes])


def test_a_step_for_any_size_compiles_twice():
    graphs = counted(AnySize())
    assert graphs.compiled == (1, 1, 0, 0)
    assert graphs.recompilations == 1
    assert graphs.breaks == {}
    assert counted(AnySize(), (*SIZES, 1)).recompilations == 2


def test_a_step_that_depends_on_its_size_compiles_for_each():
    def step(x):
        torch._dynamo.mark_static(x, 0)
        compiled(x).backward()

    compiled = torch.compile(AnySize(), backend="aot_eager")
    assert count_graphs(step, [torch.randn(size, 3) for size in SIZES]).recompilations == len(SIZES) - 1
    assert counted(EachSize()).recompilations == len(SIZES) - 1


def test_a_step_that_depends_on_the_steps_before_compiles_for_the_same_size():
    assert counted(EachStep(), (4, 4, 4)).recompilations > 0


def test_a_break_is_counted_with_its_reason():
    graphs = counted(Broken(), (4,))
    assert graphs.compiled == (2,)
    assert list(graphs.breaks.values()) == [1]
    assert "graph_break" in next(iter(graphs.breaks))


def test_a_step_past_the_compiler_is_told():
    with pytest.raises(RuntimeError, match="nothing was compiled"):
        count_graphs(lambda x: AnySize()(x), [torch.randn(2, 3)])


def test_graphs_of_a_family_are_counted_in_its_process():
    words = ["--families", "cube_unet", "--grid", "1", "8", "16", "--backend", "eager", "--batches", "3", "2"]
    (table,) = bench.run(arguments(*words, "--rounds", "0"))
    assert table.met, table.notes
    (row,) = table.rows
    assert row["model"] == "cube_unet_tiny"
    assert row["graph_breaks"] == 0
    assert row["graphs"][2:] == [0, 0]  # the second time over
    assert row["recompilations"] == 1


def test_a_step_is_timed_eager_and_compiled(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    words = ["--families", "cube_unet", "--grid", "1", "8", "16", "--rounds", "2", "--batch", "1"]
    (chosen,) = case.cases(arguments(*words))
    finding = case.measured(chosen, case.prepare(chosen))
    assert "nothing was compiled" in finding.failures["counting"]
    assert list(finding.samples) == ["eager", "compiled"]
    table = report.comparison([chosen], {chosen.name: Outcome(finding)})
    assert table.rows[0]["speed_up"] > 0
    assert not table.met  # nothing is known of its graphs


def test_cuda_graphs_help_only_where_they_ran_and_are_faster():
    (chosen,) = case.cases(arguments("--families", "cube_unet", "--rounds", "1"))

    def row(graphed, skipped=0):
        ways = {"eager": 4.0, "compiled": 2.0, "CUDA graphs": graphed}
        finding = case.Finding(samples={way: Samples((seconds,)) for way, seconds in ways.items()}, skipped=skipped)
        return report.comparison([chosen], {chosen.name: Outcome(finding)}).rows[0]

    assert row(1.0)["graphs_help"]
    assert row(1.0)["speed_up"] == row(1.0)["graph_gain"] == 2
    assert not row(1.99)["graphs_help"]
    assert not row(1.0, skipped=1)["graphs_help"]


def test_a_family_that_was_lost_misses_a_target_and_says_why():
    (chosen,) = case.cases(arguments("--families", "cube_unet"))
    table = report.comparison([chosen], {chosen.name: Outcome(failure="was not ready in time")})
    assert not table.met
    assert "cube_unet_tiny, all: was not ready in time" in table.notes


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--families", "cube_unit"], "cube_unet"),
        (["--size", "vast"], "vast"),
        (["--families", "cube_nas", "--size", "nano"], "cube_nas"),
        (["--batches", "0"], "at least 1"),
    ],
)
def test_what_does_not_exist_is_refused(words, said):
    with pytest.raises(ConfigError, match=said):
        case.cases(arguments(*words))


def test_every_family_takes_part():
    families = {chosen.family for chosen in case.cases(arguments())}
    assert families == {registry.model_info(name).family for name in registry.list_models()}


@pytest.mark.parametrize("family", ["cube_simvp", "cube_convlstm"])
def test_one_graph_serves_every_batch_of_a_sequence(family):
    """In bfloat16, where what kernel PyTorch chooses on the CPU does not depend on the batch."""
    subject = Subject(f"{family}_tiny")
    model = subject.miniature().train()
    step = torch.compile(LossModule(model, torch.bfloat16), backend="eager")
    graphs = count_graphs(lambda batch: step(batch)["loss"], [subject.batch(model, size) for size in SIZES])
    assert graphs.compiled == (1, 1, 0, 0)
    assert graphs.breaks == {}
