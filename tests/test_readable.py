import pytest

from astrozoo.readable import format_bytes, format_count, format_flops, format_seconds


@pytest.mark.parametrize(
    ("seconds", "text"), [(2.5, "2.5 s"), (0.0456, "45.6 ms"), (7.89e-6, "7.89 us"), (-0.002, "-2 ms"), (0, "0 us")]
)
def test_format_seconds(seconds, text):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (512, "512 B"), (1536, "1.5 KiB"), (3 * 2**40, "3 TiB")])
def test_format_bytes(count, text):
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (950, "950"), (999_600, "1 M"), (1_234_567, "1.23 M"), (13e9, "13 B"), (4.5e12, "4.5 T")],
)
def test_format_count(count, text):
    assert format_count(count) == text


@pytest.mark.parametrize(("count", "text"), [(12, "12 FLOP"), (1.23e9, "1.23 GFLOP"), (999.7e9, "1 TFLOP")])
def test_format_flops(count, text):
    assert format_flops(count) == text
