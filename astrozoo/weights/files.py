"""Files written whole or not at all, and tensors in them.

`atomic_write` replaces one file, `atomic_folder` a set of files, `atomic_tree` a whole folder, so that a crash, Ctrl-C,
SIGKILL or a full disk leaves what was there before. `write_tensors` and `read_tensors` speak safetensors; reading maps
the file into memory, so a tensor costs no memory of its own until somebody writes to it. Nothing here ever unpickles.

Matrix kernels may sum in another order when a matrix does not start at a multiple of 16 bytes (64 is the most that
kernels care about, and what torch's own memory has), and a mapped tensor starts where the file has it. So files are
written with tensors at such addresses as far as the format allows, and what is not aligned even so is copied when it is
read: the same weights give the same bits.

A folder that exists cannot be replaced in one step on every file system, and it may hold files of other people. So new
files are gathered in a hidden folder inside it, which one rename marks as committed; only then are they moved to their
places. `find_file` looks into a committed folder first, and the next write finishes the moves, so that at every moment
either all old files or all new ones are what a reader finds.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from astrozoo.errors import WeightsError

__all__ = [
    "DTYPES",
    "aligned",
    "atomic_folder",
    "atomic_tree",
    "atomic_write",
    "dtype_text",
    "find_file",
    "open_tensors",
    "read_tensors",
    "remove_abandoned",
    "save_file",
    "write_tensors",
]

# What safetensors calls the dtypes that torch has too.
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64, "BOOL": torch.bool,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
}  # fmt: skip
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNMENT = 64  # bytes, as torch allocates on the CPU

_COMMITTED = ".astrozoo-committed"
_STAGING = ".astrozoo-saving-"
_OBSOLETE = ".obsolete.json"


# -- one file ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well, what was written there becomes `path`.

    Any exception, Ctrl-C included, removes the temporary file and leaves the old one as it was.

    Raises:
        WeightsError: The file could not be written (full disk, no permission); the message says what was kept.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{_unique()}")
    with _explained(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            _sync(temporary)
            temporary.replace(path)  # atomic: same folder, hence same file system
            _sync(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


# -- several files that belong together --------------------------------------------------------------------------------


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str], *, replaces: tuple[str, ...] = ()) -> Iterator[Path]:
    """Yield an empty folder; when the block ends well, the files in it become files of the folder `path`, all at once.

    A folder that did not exist appears complete. In one that did, files of the same name are replaced, and other files
    stay unless they match a pattern of `replaces` (shards of an earlier save, say). Sub-folders cannot be written.

    Raises:
        WeightsError: The files could not be written (full disk, no permission); the message says what was kept.
    """
    path = Path(path).absolute()
    with _explained(path):
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(f"{path} is a file, not a folder")
        fresh = not path.exists()
        parent = path.parent if fresh else path
        parent.mkdir(parents=True, exist_ok=True)
        staging = parent / f"{_STAGING}{socket.gethostname()}-{os.getpid()}-{_unique()}"
        try:
            staging.mkdir()
            yield staging
            for file in staging.iterdir():
                _sync(file)
            _sync(staging)
            if fresh:
                staging.rename(path)
                _sync(parent)
                return
            _finish_commit(path)  # of an earlier write that was killed while it moved its files
            _note_obsolete(path, staging, replaces)
            staging.rename(path / _COMMITTED)  # from here on the new files are the ones that count
            _sync(path)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        _finish_commit(path)
        remove_abandoned(path)


@contextlib.contextmanager
def atomic_tree(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path for a folder; when the block ends well, that folder with all in it takes the place of `path`.

    For readers of other libraries, which know no committed folder: what was there is renamed, then the new one is. A
    process killed between the two leaves the old one as `.<name>.replaced`, which the next write puts back first.

    Raises:
        WeightsError: It could not be written (full disk, no permission); the message says what was kept.
    """
    path = Path(path).absolute()
    replaced = path.with_name(f".{path.name}.replaced")
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _put_back(replaced, path)
        staging = path.with_name(f"{_STAGING}{socket.gethostname()}-{os.getpid()}-{_unique()}")
        try:
            yield staging
            for item in (*staging.rglob("*"), staging):
                _sync(item)
            if path.exists():
                path.rename(replaced)
            staging.rename(path)
            _sync(path.parent)
        except BaseException:
            _put_back(replaced, path)
            _remove_tree(staging)
            raise
        _remove_tree(replaced)
        remove_abandoned(path.parent)


def _put_back(replaced: Path, path: Path) -> None:
    if replaced.exists():
        _remove_tree(replaced) if path.exists() else replaced.rename(path)


def _remove_tree(path: Path) -> None:
    """Delete a folder that threads of a failed write may still be filling: they make it anew while it is deleted."""
    for _ in range(20):
        shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True) if path.is_file() else None
        time.sleep(0.005)
        if not path.exists():
            return


def find_file(folder: str | os.PathLike[str], name: str) -> Path | None:
    """The file `name` of a folder written with `atomic_folder`, or None. Correct even after a crash amid a commit."""
    committed = Path(folder) / _COMMITTED
    if (committed / name).is_file():
        return committed / name
    if name in _obsolete(committed):
        return None
    file = Path(folder) / name
    return file if file.is_file() else None


def _note_obsolete(path: Path, staging: Path, patterns: tuple[str, ...]) -> None:
    kept = {file.name for file in staging.iterdir()}
    names = [file.name for file in path.iterdir() if file.is_file()]
    obsolete = [name for name in names if name not in kept and any(fnmatch(name, pattern) for pattern in patterns)]
    note = staging / _OBSOLETE
    note.write_text(json.dumps(obsolete), encoding="utf-8")
    _sync(note)


def _obsolete(committed: Path) -> list[str]:
    try:
        names: list[str] = json.loads((committed / _OBSOLETE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    return names


def _finish_commit(path: Path) -> None:
    committed = path / _COMMITTED
    if not committed.is_dir():
        return
    for name in _obsolete(committed):
        (path / name).unlink(missing_ok=True)
    for file in sorted(committed.iterdir()):
        if file.name != _OBSOLETE:
            file.replace(path / file.name)
    (committed / _OBSOLETE).unlink(missing_ok=True)
    committed.rmdir()
    _sync(path)


def remove_abandoned(path: Path) -> None:
    """Delete what processes of this machine that no longer run have left half-written."""
    prefix = f"{_STAGING}{socket.gethostname()}-"
    for folder in path.glob(f"{_STAGING}*"):
        process = folder.name.removeprefix(prefix).partition("-")[0]
        if folder.name.startswith(prefix) and process.isdigit() and not _runs(int(process)):
            shutil.rmtree(folder, ignore_errors=True)


def _runs(process: int) -> bool:
    if os.name == "nt":  # os.kill(pid, 0) would end the process there
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


# -- tensors -----------------------------------------------------------------------------------------------------------


def write_tensors(
    tensors: Mapping[str, Tensor], path: str | os.PathLike[str], *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors to one safetensors file, atomically. Each is stored dense, contiguous and on its own.

    Raises:
        WeightsError: A value is no tensor that a file can hold, or the file could not be written.
    """
    with atomic_write(path) as temporary:
        save_file(_storable(tensors), temporary, dict(metadata or {}))


def read_tensors(
    path: str | os.PathLike[str], *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """All tensors of a safetensors file; on the CPU they are views of the mapped file, where that aligns them.

    Raises:
        WeightsError: The file is missing, damaged or a pickle.
    """
    with open_tensors(path) as file:
        tensors = {}
        for name in file.keys():  # noqa: SIM118  a reader, not a dict
            tensor = file.get_tensor(name)
            tensors[name] = aligned(tensor.to(device, dtype if tensor.is_floating_point() else None))
        return tensors


def aligned(tensor: Tensor) -> Tensor:
    """The tensor, or a copy where its memory does not start at such an address as torch's own."""
    return tensor if tensor.data_ptr() % _ALIGNMENT == 0 else tensor.clone()


@contextlib.contextmanager
def open_tensors(path: str | os.PathLike[str]) -> Iterator[Any]:
    """A safetensors reader (`keys()`, `get_slice(name)`, `get_tensor(name)`, `metadata()`) that maps the file.

    Raises:
        WeightsError: The file is missing or damaged; the message names it and the reason.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise WeightsError(damaged(path, str(error))) from error


def damaged(path: Path, reason: str) -> str:
    """The sentence about a safetensors file that cannot be read."""
    if not path.exists():
        return f"Weights file {path} does not exist; check the path, or save or download the model again."
    with contextlib.suppress(OSError), path.open("rb") as file:
        start = file.read(8)
        # What torch.save writes, today and of old; the first eight bytes of safetensors are a length, whose last is 0.
        if start.startswith(b"PK\x03\x04") or (start[:1] == b"\x80" and start[7:] != b"\0"):
            return (
                f"Weights file {path} is a pickle under the name of a safetensors file, and unpickling can run any "
                f"code that its author put there. If you trust it, rename it to .pt and run: astrozoo convert FILE OUT "
                f"--name NAME"
            )
    return (
        f"Weights file {path} ({path.stat().st_size:,} bytes) is no readable safetensors file: {reason}. It is "
        f"truncated or damaged: copy or download it again."
    )


def _storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU, none of which shares memory with another."""
    storable: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, value in tensors.items():
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            raise WeightsError(f"{name!r} is {_kind(value)}; a safetensors file holds dense tensors only.")
        if value.is_meta:
            raise WeightsError(
                f"{name!r} is on the meta device and has no values to save; materialise the model first."
            )
        if hasattr(value, "full_tensor"):  # DTensor: this process holds only a part of it
            raise WeightsError(f"{name!r} is sharded over processes; gather a full state dict and save that.")
        if value.dtype not in _DTYPE_NAMES:
            raise WeightsError(
                f"{name!r} has dtype {dtype_text(value.dtype)}, which a safetensors file cannot hold; "
                f"it holds {', '.join(dtype_text(dtype) for dtype in DTYPES.values())}."
            )
        # conjugation and negation may be pending: memory does not show them yet
        tensor = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        if storage in storages and tensor.numel():
            tensor = tensor.clone()
        storages.add(storage)
        storable[name] = tensor
    return storable


def dtype_text(dtype: torch.dtype) -> str:
    """`float32` for `torch.float32`."""
    return str(dtype).removeprefix("torch.")


def _kind(value: object) -> str:
    return f"a {value.layout} tensor" if isinstance(value, Tensor) else f"of type {type(value).__name__}"


def save_file(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write the safetensors format: the header's length, the header as JSON padded with blanks, then bare bytes.

    The format has no gaps between tensors. With those first whose size is divided by the largest power of two, each
    starts at a multiple of that power: a matrix of whole 64-byte blocks at a multiple of 64, whatever its neighbours.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}  # what transformers and the Hub look for
    order = sorted(tensors, key=lambda name: (-math.gcd(tensors[name].nbytes, _ALIGNMENT), name))
    end = 0
    for name in order:
        tensor, start = tensors[name], end
        end += tensor.nbytes
        header[name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(memoryview(tensors[name].reshape(-1).view(torch.uint8).numpy()))


# -- helpers -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WeightsError(
            f"Could not write {path}: {error.strerror or error}. {_free_space(path)}"
            f"What was saved there before is unchanged; free space or choose another place, then save again."
        ) from error


def _free_space(path: Path) -> str:
    existing = next((folder for folder in path.parents if folder.exists()), None)
    return f"{shutil.disk_usage(existing).free:,} bytes are free there. " if existing else ""


def _unique() -> str:
    return uuid.uuid4().hex[:12]


def _sync(path: Path) -> None:
    """Make a file's bytes, or a folder's names, survive a power loss."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open folders; it keeps names safe by itself
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
