"""Files are written whole or not at all, whatever interrupts."""

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from astrozoo.errors import WeightsError
from astrozoo.weights import files
from astrozoo.weights.files import atomic_folder, atomic_write, find_file, open_tensors, read_tensors, write_tensors


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def write_all(folder: Path, text: str, *file_names: str, replaces: tuple[str, ...] = ()) -> None:
    with atomic_folder(folder, replaces=replaces) as staging:
        for name in file_names:
            (staging / name).write_text(text)


def interrupted_write(file: Path, interruption: type[BaseException]) -> None:
    with atomic_write(file) as temporary:
        temporary.write_text("half")
        raise interruption


def interrupted_folder(folder: Path) -> None:
    with atomic_folder(folder) as staging:
        (staging / "a").write_text("half")
        raise KeyboardInterrupt


def test_write_replaces_the_file_and_leaves_nothing_else(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with atomic_write(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


def test_written_file_has_the_permissions_of_the_umask(tmp_path):
    umask = os.umask(0o022)
    try:
        with atomic_write(tmp_path / "a.txt") as temporary:
            temporary.write_text("new")
    finally:
        os.umask(umask)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, ValueError, MemoryError])
def test_interrupted_write_keeps_the_old_file(tmp_path, interruption):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(interruption):
        interrupted_write(target, interruption)
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_new_folder_appears_complete(tmp_path):
    with atomic_folder(tmp_path / "deep" / "new") as staging:
        (staging / "a").write_text("1")
        assert not (tmp_path / "deep" / "new").exists()
    assert names(tmp_path / "deep") == ["new"]
    assert names(tmp_path / "deep" / "new") == ["a"]


def test_existing_folder_keeps_files_of_others_and_loses_obsolete_ones(tmp_path):
    write_all(tmp_path, "old", "config.json", "part-1", "part-2")
    (tmp_path / "notes.md").write_text("mine")
    (tmp_path / "plots").mkdir()
    write_all(tmp_path, "new", "config.json", "part-1", replaces=("part-*",))
    assert names(tmp_path) == ["config.json", "notes.md", "part-1", "plots"]
    assert (tmp_path / "config.json").read_text() == (tmp_path / "part-1").read_text() == "new"


@pytest.mark.parametrize("fresh", [True, False], ids=["new folder", "existing folder"])
def test_interrupted_folder_keeps_what_was_there(tmp_path, fresh):
    folder = tmp_path / "save"
    if not fresh:
        write_all(folder, "old", "a", "b")
    with pytest.raises(KeyboardInterrupt):
        interrupted_folder(folder)
    assert names(tmp_path) == ([] if fresh else ["save"])
    if not fresh:
        assert names(folder) == ["a", "b"]
        assert (folder / "a").read_text() == "old"


@pytest.mark.parametrize("moves", [0, 1, 2, 3])
def test_reader_sees_only_new_files_when_killed_while_moving(tmp_path, monkeypatch, moves):
    write_all(tmp_path, "old", "a", "b", "obsolete")
    done = 0
    replace = Path.replace

    def killed(self, target):
        nonlocal done
        if done == moves:
            raise KeyboardInterrupt
        done += 1
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    if moves < 3:
        with pytest.raises(KeyboardInterrupt):
            write_all(tmp_path, "new", "a", "b", "c", replaces=("obsolete",))
    else:
        write_all(tmp_path, "new", "a", "b", "c", replaces=("obsolete",))
    monkeypatch.undo()
    found = {name: find_file(tmp_path, name) for name in ("a", "b", "c", "obsolete")}
    assert found.pop("obsolete") is None
    assert {file.read_text() for file in found.values()} == {"new"}
    write_all(tmp_path, "newer", "a", replaces=())
    assert names(tmp_path) == ["a", "b", "c"]
    assert (tmp_path / "a").read_text() == "newer"
    assert (tmp_path / "b").read_text() == "new"


def test_leftovers_of_a_killed_process_are_removed_by_the_next_write(tmp_path):
    write_all(tmp_path, "old", "a")
    script = f"""
        import os, signal
        from astrozoo.weights.files import atomic_folder
        with atomic_folder({str(tmp_path)!r}) as staging:
            (staging / "a").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert find_file(tmp_path, "a").read_text() == "old"
    assert len(names(tmp_path)) == 2
    write_all(tmp_path, "new", "a")
    assert names(tmp_path) == ["a"]


def test_target_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "save").write_text("a file")
    with pytest.raises(WeightsError, match="is a file, not a folder"):
        write_all(tmp_path / "save", "new", "a")
    assert (tmp_path / "save").read_text() == "a file"


def test_tensors_come_back_bit_identical(tmp_path):
    tensors = {
        "bfloat16": torch.randn(3, 5).bfloat16(),
        "float64": torch.randn(2, dtype=torch.float64),
        "bool": torch.tensor([True, False]),
        "int64": torch.arange(4),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        "complex": torch.randn(2, dtype=torch.complex64),
        "transposed": torch.randn(4, 6).T,
    }
    write_tensors(tensors, tmp_path / "x.safetensors", metadata={"epoch": "3"})
    read = read_tensors(tmp_path / "x.safetensors")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)
    with open_tensors(tmp_path / "x.safetensors") as file:
        assert file.metadata() == {"format": "pt", "epoch": "3"}


def test_tensors_that_share_memory_are_stored_each_on_its_own(tmp_path):
    base = torch.arange(6.0)
    write_tensors({"all": base, "tail": base[3:], "same": base}, tmp_path / "x.safetensors")
    read = read_tensors(tmp_path / "x.safetensors")
    assert torch.equal(read["tail"], base[3:])
    assert torch.equal(read["same"], base)


def test_large_tensors_are_aligned_whatever_stands_beside_them(tmp_path):
    odd = {f"a{size}": torch.randn(size) for size in (1, 3, 5, 7)}
    write_tensors(
        {**odd, "large": torch.randn(4, 16), "byte": torch.ones(1, dtype=torch.uint8)}, tmp_path / "x.safetensors"
    )
    content = (tmp_path / "x.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert (8 + length) % 64 == 0
    assert header["large"]["data_offsets"] == [0, 256]
    assert all(header[name]["data_offsets"][0] % 4 == 0 for name in odd)
    read = read_tensors(tmp_path / "x.safetensors")
    assert {tensor.data_ptr() % 64 for tensor in read.values()} == {0}
    assert load_file(tmp_path / "x.safetensors").keys() == read.keys()


def test_pending_conjugation_and_negation_are_stored(tmp_path):
    value = torch.randn(3, dtype=torch.complex64)
    write_tensors({"conj": value.conj(), "imag": value.conj().imag}, tmp_path / "x.safetensors")
    read = load_file(tmp_path / "x.safetensors")
    assert torch.equal(read["conj"], value.conj())
    assert torch.equal(read["imag"], -value.imag)


def test_reading_converts_floating_tensors_only(tmp_path):
    write_tensors({"w": torch.ones(2), "i": torch.ones(2, dtype=torch.int64)}, tmp_path / "x.safetensors")
    read = read_tensors(tmp_path / "x.safetensors", dtype=torch.bfloat16)
    assert (read["w"].dtype, read["i"].dtype) == (torch.bfloat16, torch.int64)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (3, "of type int"),
        (torch.eye(3).to_sparse(), "sparse_coo"),
        (torch.empty(2, device="meta"), "meta device"),
        (torch.ones(2, dtype=torch.complex128), "has dtype complex128.*it holds float64"),
    ],
    ids=["no tensor", "sparse", "meta", "complex128"],
)
def test_value_that_cannot_be_stored_is_named(tmp_path, value, reason):
    with pytest.raises(WeightsError, match=f"'layer.weight' .*{reason}"):
        write_tensors({"layer.weight": value}, tmp_path / "x.safetensors")
    assert names(tmp_path) == []


def test_full_disk_keeps_the_old_file_and_says_so(tmp_path):
    write_tensors({"w": torch.zeros(4)}, tmp_path / "x.safetensors")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # writes beyond it fail as on a full disk
    try:
        with pytest.raises(
            WeightsError, match=r"Could not write .*x\.safetensors.*What was saved there before is unch"
        ):
            write_tensors({"w": torch.ones(1 << 20)}, tmp_path / "x.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert torch.equal(read_tensors(tmp_path / "x.safetensors")["w"], torch.zeros(4))
    assert names(tmp_path) == ["x.safetensors"]


def test_missing_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"none\.safetensors does not exist"):
        read_tensors(tmp_path / "none.safetensors")


def test_process_of_another_machine_is_never_taken_for_dead(tmp_path, monkeypatch):
    write_all(tmp_path, "old", "a")
    (tmp_path / f"{files._STAGING}elsewhere-1-abc").mkdir()
    write_all(tmp_path, "new", "a")
    assert len(names(tmp_path)) == 2
