"""Who serves a kernel: free choice, forced choice, nothing installed, something stale or broken."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from astrozoo import accel
from astrozoo.accel import dispatch
from astrozoo.bench import accel as benchmarks
from astrozoo.errors import BackendUnavailableError

KERNELS = list(accel.kernels())
CUBE = np.arange(6.0).reshape(2, 3)


@dataclasses.dataclass
class Other:
    """An accelerator of a third party; it serves one kernel, wrongly, so that one sees it at work."""

    name: str = "other"
    interface: int = accel.INTERFACE
    kernels: dict = dataclasses.field(default_factory=lambda: {"nan_stats": lambda *_: (np.full(2, 7.0),) * 5})


@pytest.fixture
def install(monkeypatch):
    """Make these accelerators the installed ones."""

    def install(*accelerators):
        from astrozoo import registry

        class Hooks:
            hook = property(lambda self: self)

            def astrozoo_accelerators(self):
                return [list(accelerators)]

        monkeypatch.setattr(registry, "plugin_manager", Hooks)
        monkeypatch.setattr(dispatch, "_found", None)
        monkeypatch.delenv("ASTROZOO_ACCEL", raising=False)

    return install


def test_without_an_accelerator_numpy_serves_in_silence(install, recwarn):
    install()
    assert set(accel.info().providers.values()) == {"numpy"}
    assert accel.nan_stats(CUBE).mean.tolist() == [1.0, 4.0]
    assert not recwarn


def test_an_accelerator_serves_what_it_has_and_numpy_the_rest(install):
    install(Other())
    providers = accel.info().providers
    assert providers["nan_stats"] == "other"
    assert {provider for kernel, provider in providers.items() if kernel != "nan_stats"} <= {"numpy"}
    assert accel.nan_stats(CUBE).mean.tolist() == [7.0, 7.0]


def test_the_variable_forces_numpy(install, monkeypatch):
    install(Other())
    monkeypatch.setenv("ASTROZOO_ACCEL", "NumPy")
    assert accel.nan_stats(CUBE).mean.tolist() == [1.0, 4.0]
    assert accel.info().forced == "numpy"


def test_using_wins_over_the_variable_and_ends_with_its_block(install, monkeypatch):
    install(Other())
    monkeypatch.setenv("ASTROZOO_ACCEL", "numpy")
    with accel.using("other"):
        assert accel.nan_stats(CUBE).mean.tolist() == [7.0, 7.0]
        assert accel.info().forced == "other"
    assert accel.nan_stats(CUBE).mean.tolist() == [1.0, 4.0]


def test_a_forced_accelerator_that_is_not_installed_says_how_to_get_it(install, monkeypatch):
    install()
    monkeypatch.setenv("ASTROZOO_ACCEL", "rust")
    with pytest.raises(BackendUnavailableError, match=r"'rust' was asked for and is not installed.*make install"):
        accel.nan_stats(CUBE)
    with pytest.raises(BackendUnavailableError, match="not installed"), accel.using("rsut"):
        pass


def test_a_forced_accelerator_without_the_kernel_is_an_error(install):
    install(Other(kernels={}))
    with accel.using("other"), pytest.raises(BackendUnavailableError, match="has no kernel 'nan_stats'"):
        accel.nan_stats(CUBE)


def test_an_accelerator_of_another_interface_is_stale_and_says_what_to_do(install, monkeypatch):
    install(Other(interface=accel.INTERFACE + 1))
    with pytest.raises(BackendUnavailableError, match=r"stale.*make install"):
        accel.nan_stats(CUBE)
    monkeypatch.setenv("ASTROZOO_ACCEL", "numpy")
    assert accel.nan_stats(CUBE).mean.tolist() == [1.0, 4.0]


def test_info_reads_as_a_sentence_each(install):
    install(Other())
    text = str(accel.info())
    assert "other: nan_stats" in text
    assert f"threads: {accel.info().threads}" in text


# -- the threads of a call ---------------------------------------------------------------------------------------------


def test_threads_are_those_asked_for_then_those_of_the_variable_then_the_cores(monkeypatch):
    from astrozoo.accel.threads import workers

    monkeypatch.setenv("ASTROZOO_NUM_THREADS", "3")
    assert (workers(5), workers(None)) == (5, 3)
    monkeypatch.delenv("ASTROZOO_NUM_THREADS")
    assert workers(None) >= 1


@pytest.mark.parametrize("bad", [0, -1, 1.5, True, "2"])
def test_a_number_of_threads_that_is_none_is_refused(bad):
    with pytest.raises(ValueError, match="threads is"):
        accel.nan_stats(CUBE, threads=bad)


@pytest.mark.parametrize("bad", ["0", "many", "-2"])
def test_a_variable_that_is_no_number_is_refused(bad, monkeypatch):
    monkeypatch.setenv("ASTROZOO_NUM_THREADS", bad)
    with pytest.raises(ValueError, match="ASTROZOO_NUM_THREADS is"):
        accel.nan_stats(CUBE)


class Threads:
    """A data set whose samples are the number of threads that a call in its worker uses."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        from astrozoo.accel.threads import workers

        accel.nan_stats(np.ones((3, 200_000)), threads=2)  # threads that are asked for work in a forked process, too
        return workers(None)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # forking beside threads, from Python 3.12 on
def test_a_worker_of_a_data_loader_uses_one_thread(monkeypatch):
    from torch.utils.data import DataLoader

    monkeypatch.delenv("ASTROZOO_NUM_THREADS", raising=False)
    accel.nan_stats(np.ones((3, 200_000)), threads=2)
    assert [int(batch) for batch in DataLoader(Threads(), num_workers=1)] == [1, 1]


# -- every kernel ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_has_a_documented_function_a_benchmark_and_tests_of_its_own(kernel):
    function = getattr(accel, kernel)
    assert "threads" in inspect.signature(function).parameters
    assert all(section in function.__doc__ for section in ("Args:", "Returns:", "Raises:"))
    assert list(inspect.signature(accel.kernels()[kernel]).parameters)[-1] == "threads"
    assert kernel in {case.kernel for case in benchmarks.cases()}
    tests = "".join(
        file.read_text() for file in Path(__file__).parent.glob("test_*.py") if file.name != Path(__file__).name
    )
    assert f"accel.{kernel}(" in tests


@pytest.mark.usefixtures("rust")
def test_rust_serves_every_kernel_and_no_other():
    with accel.using("rust"):
        assert accel.info().providers == dict.fromkeys(KERNELS, "rust")
    (accelerator,) = (item for item in dispatch._accelerators().values() if item.name == "rust")
    assert set(accelerator.kernels) == set(KERNELS)


@pytest.mark.usefixtures("rust")
def test_the_stubs_are_those_of_the_module():
    command = [sys.executable, "-m", "mypy.stubtest", "astrozoo_rust._native"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


# -- the extension module ----------------------------------------------------------------------------------------------


@pytest.fixture
def sources(tmp_path):
    """A small tree that looks like the crates."""
    for crate in ("astrozoo-core", "astrozoo-py"):
        (tmp_path / crate / "src" / "deep").mkdir(parents=True)
        (tmp_path / crate / "Cargo.toml").write_text("[package]\n")
        (tmp_path / crate / "src" / "lib.rs").write_text("// a\n")
    (tmp_path / "astrozoo-py" / "build.rs").write_text("fn main() {}\n")
    return tmp_path


@pytest.mark.usefixtures("rust")
def test_changed_sources_make_the_module_stale(sources, monkeypatch):
    from astrozoo_rust import provider

    monkeypatch.setattr(provider, "_CRATES", sources)
    with pytest.raises(BackendUnavailableError, match=r"astrozoo-rust is stale.*make install"):
        provider.RustAccelerator()


@pytest.mark.usefixtures("rust")
def test_the_digest_sees_every_source_and_nothing_else(sources):
    from astrozoo_rust.provider import digest_of_sources

    seen = {digest_of_sources(sources)}
    (sources / "astrozoo-core" / "src" / "deep" / "new.rs").write_text("")
    seen.add(digest_of_sources(sources))
    (sources / "astrozoo-py" / "Cargo.toml").write_text("[package]\nname = 'x'\n")
    seen.add(digest_of_sources(sources))
    assert len(seen) == 3
    (sources / "astrozoo-core" / "benches").mkdir()
    (sources / "astrozoo-core" / "benches" / "b.rs").write_text("")
    assert digest_of_sources(sources) in seen
    assert digest_of_sources(sources / "elsewhere") is None


@pytest.mark.usefixtures("rust")
def test_a_module_that_does_not_load_says_how_to_rebuild_it(monkeypatch):
    from astrozoo_rust import provider

    monkeypatch.setitem(sys.modules, "astrozoo_rust._native", None)
    monkeypatch.delattr(sys.modules["astrozoo_rust"], "_native", raising=False)
    with pytest.raises(BackendUnavailableError, match=r"does not load.*make install"):
        provider.RustAccelerator()


def test_importing_astrozoo_imports_no_kernels():
    code = "import sys, astrozoo; astrozoo.list_models(); assert not {'astrozoo.accel', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(find_spec("astrozoo_rust") is None, reason="astrozoo-rust is not installed")
def test_a_fresh_process_finds_rust_by_itself():
    code = "from astrozoo import accel; print(accel.info().providers['nan_stats'])"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "rust"
