"""What holds for every kernel: both providers agree, threads change nothing, the interpreter lock is released."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from astrozoo import accel


def both(call: Callable[[], Any]) -> tuple[Any, Any]:
    """What `call` gives with the NumPy reference, and with Rust."""
    with accel.using("numpy"):
        expected = call()
    with accel.using("rust"):
        return expected, call()


def assert_agree(call: Callable[[], Any], *, rtol: float = 1e-12, atol: float = 0.0) -> None:
    """Both providers give arrays of the same shapes and dtypes, and of equal values within the tolerances."""
    assert_same(*both(call), rtol=rtol, atol=atol)


def assert_same(expected: Any, found: Any, *, rtol: float = 0.0, atol: float = 0.0, where: str = "result") -> None:
    if isinstance(expected, Mapping):
        assert list(expected) == list(found), where
        for key in expected:
            assert_same(expected[key], found[key], rtol=rtol, atol=atol, where=f"{where}[{key!r}]")
    elif isinstance(expected, Sequence) and not isinstance(expected, str):
        assert type(expected) is type(found), where
        assert len(expected) == len(found), where
        for i, (one, other) in enumerate(zip(expected, found, strict=True)):
            name = expected._fields[i] if hasattr(expected, "_fields") else i
            assert_same(one, other, rtol=rtol, atol=atol, where=f"{where}.{name}")
    elif isinstance(expected, np.ndarray):
        assert (expected.dtype, expected.shape) == (found.dtype, found.shape), where
        if expected.dtype.kind in "fc":
            np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol, err_msg=where)
        else:
            np.testing.assert_array_equal(found, expected, err_msg=where)
    else:
        assert type(expected) is type(found), where
        assert expected == found or (expected != expected and found != found), where


def assert_threads_change_nothing(call: Callable[[int], Any]) -> None:
    """Rust gives the same bits with 1, 2 and 5 threads."""
    with accel.using("rust"):
        one = call(1)
        for threads in (2, 5):
            assert_same(one, call(threads))


def assert_releases_the_lock(call: Callable[[], Any]) -> None:
    """Another Python thread goes on while `call` computes, which should take some milliseconds.

    The interpreter is told never to take the lock from a running thread, so the other one gets it only where it is
    released on purpose.
    """
    ticks, stop = [0], threading.Event()

    def tick() -> None:
        while not stop.is_set():
            ticks[0] += 1
            time.sleep(0)  # gives the lock back, and asks for it again

    other = threading.Thread(target=tick, daemon=True)
    interval = sys.getswitchinterval()
    with accel.using("rust"):
        call()  # imports, caches
        sys.setswitchinterval(1e6)
        try:
            other.start()
            for _ in range(50):
                before = ticks[0]
                call()
                if ticks[0] > before:
                    return
        finally:
            sys.setswitchinterval(interval)
            stop.set()
            other.join()
    raise AssertionError("no other thread ran during 50 calls: the interpreter lock is held")
