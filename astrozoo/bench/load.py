"""How long a model of a billion parameters takes to load from a warm page cache, and how much memory that takes.

Contestants, each in a fresh process that times the loading alone: `load_model`; `load_model` followed by reading one
byte of every page of the weights; mapping the file and reading one byte of every page; timm and transformers loading
models of their own of equal size. Files are written once to a temporary folder (about 4 GB each, removed afterwards).

Targets: loaded with every page touched at most 1.2x of mapping and touching; peak memory at most 1.1x of the weights
above what the imports take; faster than timm and transformers.

Examples:
  astrozoo bench load
  astrozoo bench load --parameters 100e6 --rounds 3
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from astrozoo.bench.harness import Comparison, measure_processes

__all__ = ["add_arguments", "run"]

# Every program prints the seconds of its last part; the imports above it are in no contestant's time.
_TIMED = """
import os, sys, time
{imports}
# Read the file once, so that each contestant finds it in the page cache.
with open({file!r}, "rb", buffering=0) as file:
    buffer = bytearray(1 << 24)
    while file.readinto(buffer):
        pass
del buffer
start = time.perf_counter()
{work}
print(time.perf_counter() - start)
"""
_TOUCH = """
for tensor in model.state_dict().values():
    tensor.view(-1)[:: 4096 // tensor.element_size()].sum()
"""
_MAP = """
with open({file!r}, "rb") as file:
    mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE)
    torch.frombuffer(memoryview(mapped), dtype=torch.uint8)[::4096].sum()
"""
_SAVE_OURS = """
import astrozoo
from math import sqrt
variant = astrozoo.model_info("cube_unet_huge")
base = astrozoo.create_model("cube_unet_huge", device="meta").num_parameters()
scale = sqrt({parameters} / base)
widths = tuple(max(8, int(width * scale) // 8 * 8) for width in variant.config["widths"])
model = astrozoo.create_model("cube_unet_huge", widths=widths)
astrozoo.save_model(model, {folder!r})
print(model.num_parameters())
"""
_TIMM = """dict(patch_size=14, embed_dim={width}, depth={depth}, num_heads={heads})"""
_LLAMA = """transformers.LlamaConfig(hidden_size={width}, intermediate_size={hidden}, num_hidden_layers={depth},
    num_attention_heads={heads}, num_key_value_heads={heads}, vocab_size=32000)"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How large the models are and how long to measure."""
    parser.add_argument("--parameters", type=float, default=1e9, help="size of the models (1e9)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds; each loads every model once (5)")
    parser.add_argument("--folder", help="where to keep the files while measuring (a temporary folder)")


def run(args: argparse.Namespace) -> list[Comparison]:
    """Write the models, load them in turns, and hold the times and the peak of memory to their targets."""
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        return [_measure(Path(temporary), int(args.parameters), args.rounds)]


def _measure(folder: Path, parameters: int, rounds: int) -> Comparison:
    ours = folder / "ours"
    _python_output(_SAVE_OURS.format(parameters=parameters, folder=str(ours)))
    file = str(ours / "model.safetensors")
    load = f"model = astrozoo.load_model({str(ours)!r})\n"
    # the package imports lazily: naming the function and building once brings in what is not loading
    imports = "import astrozoo, torch\nastrozoo.load_model\nastrozoo.create_model('cube_unet_nano', device='meta')"
    programs = {
        "astrozoo, touched": _program(imports, file, load + _TOUCH),
        "astrozoo": _program(imports, file, load),
        "map and touch": _program("import mmap, torch", file, _MAP.format(file=file)),
        "astrozoo, imports only": _program(imports, file, ""),
    }
    notes = ["'touched' reads one byte of every page, as the first forward pass would; memory includes the imports"]
    for name, write in (("timm", _timm), ("transformers", _transformers)):
        if find_spec(name) is None:
            notes.append(f"{name} is not installed; pip install 'astrozoo[bench]' allows the comparison")
        else:
            programs[name] = write(folder, parameters)
    comparison = measure_processes(
        {name: [sys.executable, "-W", "ignore", "-c", program] for name, program in programs.items()},
        rounds=rounds,
        self_timed=True,
        title=f"load {parameters:.3g} float32 parameters from a warm page cache",
        packages=["timm", "transformers", "safetensors"],
    )
    comparison.notes += notes
    comparison.target_ratio("astrozoo, touched", "map and touch", at_most=1.2)
    weights = (ours / "model.safetensors").stat().st_size
    peak = comparison.difference("astrozoo, touched", "astrozoo, imports only", "peak_bytes")
    comparison.target("peak memory over the weights", peak / weights, at_most=1.1)
    for peer in ("timm", "transformers"):
        if peer in comparison.samples:
            comparison.target_ratio(peer, "astrozoo, touched", at_least=1.0)
    return comparison


def _timm(folder: Path, parameters: int) -> str:
    """A vision transformer of about the size; timm reads safetensors, too."""
    width, depth, heads = _transformer(parameters, 12)
    options = _TIMM.format(width=width, depth=depth, heads=heads)
    file = str(folder / "timm.safetensors")
    create = f"timm.models.vision_transformer.VisionTransformer(**{options})"
    _python_output(
        f"import timm, safetensors.torch as s\nmodel = {create}\ns.save_file(model.state_dict(), {file!r})\nprint()"
    )
    work = f"model = {create}\ntimm.models.load_checkpoint(model, {file!r})\n"
    return _program("import timm, torch", file, work)


def _transformers(folder: Path, parameters: int) -> str:
    """A Llama of about the size, without its embeddings counted."""
    width, depth, heads = _transformer(parameters, 12)
    config = _LLAMA.format(width=width, depth=depth, heads=heads, hidden=width * 8 // 3 // 8 * 8)
    target = str(folder / "llama")
    _python_output(
        f"import transformers\nmodel = transformers.LlamaForCausalLM({config})\n"
        f"model.save_pretrained({target!r}, max_shard_size='100GB')\nprint()"
    )
    work = f"model = transformers.LlamaForCausalLM.from_pretrained({target!r}, dtype=torch.float32)\n"
    imports = "import transformers, torch\nfrom transformers import LlamaForCausalLM"
    return _program(imports, f"{target}/model.safetensors", work)


def _transformer(parameters: int, per_layer: int) -> tuple[int, int, int]:
    """Width, depth and heads of a transformer whose layers hold `per_layer * width**2` parameters each."""
    width = max(64, round((parameters / per_layer / 32) ** 0.5 / 64) * 64)
    return width, max(1, round(parameters / per_layer / width**2)), width // 64


def _program(imports: str, file: str, work: str) -> str:
    return _TIMED.format(imports=imports, file=file, work=work)


def _python_output(program: str) -> str:
    """What a program prints last; it has a process of its own, so that its memory is gone afterwards."""
    command = [sys.executable, "-W", "ignore", "-c", program]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return result.stdout.strip().rpartition("\n")[2]
