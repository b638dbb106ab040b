import argparse

import pytest
import torch

from astrozoo.bench import memory


def arguments(*words):
    parser = argparse.ArgumentParser()
    memory.add_arguments(parser)
    return parser.parse_args(words)


def test_the_measured_peak_is_that_of_the_worst_moment():
    def action():
        kept = torch.empty(1000, dtype=torch.float32)
        gone = torch.empty(3000, dtype=torch.float32)
        del gone
        return kept, torch.empty(500, dtype=torch.float32)

    assert memory.measured_peak(action, "cpu") == 16_000


def test_what_kernels_take_for_themselves_is_measured_too():
    """The columns into which PyTorch's own convolution unfolds its input are in no tensor that Python sees."""
    x, weight = (torch.randn(4, 4, *sizes, dtype=torch.float64) for sizes in ((6, 16, 16), (3, 3, 3)))
    peak = memory.measured_peak(lambda: torch.nn.functional.conv3d(x, weight, padding=1), "cpu")
    assert peak > 27 * x.nbytes


def test_a_run_compares_each_model_with_its_estimate():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # then PyTorch's own convolution runs for a batch of one
    try:
        (comparison,) = memory.run(arguments("--families", "cube_unet", "--sizes", "nano", "--batch", "1"))
    finally:
        torch.set_num_threads(threads)
    assert [(row["model"], row["precision"]) for row in comparison.rows] == [
        ("cube_unet_nano", "fp32"),
        ("cube_unet_nano", "bf16"),
    ]
    assert [target.limit for target in comparison.targets] == [15, 15]
    assert comparison.met
    assert "cube_unet_nano, bf16, batch 1" in comparison.samples
    assert all(row["ratio"] == pytest.approx(1, abs=0.15) for row in comparison.to_dict()["rows"])
    columns = [column.header for column in comparison.table().columns]
    assert columns[1:4] == ["estimated", "measured", "ratio"]
