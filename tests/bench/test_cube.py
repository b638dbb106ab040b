import argparse

import pytest

pytest.importorskip("monai", reason="the peers of the cube benchmark come from monai")

from astrozoo.bench import cube  # after the skip


def arguments(*words):
    parser = argparse.ArgumentParser()
    cube.add_arguments(parser)
    return parser.parse_args(words)


@pytest.mark.filterwarnings("ignore")  # MONAI's own deprecations are not ours to fix
@pytest.mark.parametrize("dims", [2, 3])
def test_peers_have_our_number_of_parameters(dims):
    built = {name: build() for name, build in cube._contestants("nano", dims, (2, 1), static=3).items()}
    counts = {name: sum(parameter.numel() for parameter in model.parameters()) for name, model in built.items()}
    assert list(counts) == ["cube_unet_nano", "BasicUNet", "DynUNet"]
    assert all(count == pytest.approx(counts["cube_unet_nano"], rel=0.05) for count in counts.values())


@pytest.mark.filterwarnings("ignore")
def test_a_speed_run_compares_time_and_memory_with_both_peers():
    words = ["--sizes", "nano", "--grid", "16", "16", "32", "--batch", "1", "--rounds", "1"]
    (comparison,) = cube.run(arguments(*words))
    assert set(comparison.samples) == {"cube_unet_nano", "BasicUNet", "DynUNet"}
    assert len(comparison.targets) == 4
