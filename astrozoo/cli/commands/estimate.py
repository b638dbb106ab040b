"""Estimate operations and memory of training and applying a model, without allocating any.

The model is built on the meta device and two training steps are followed on fake tensors. Workspaces of libraries such
as cuDNN, fragmentation and the context of a GPU come on top; leave some ten per cent.

--auto-batch finds the largest power of two of examples whose training fits into the memory that --device has free, or
into --memory. `astrozoo train --auto-batch` does the same and proves it with real steps.

Examples:
  astrozoo estimate cube_unet_large --batch 8 --precision bf16
  astrozoo estimate cube_unet_large --auto-batch --memory 80GiB --precision bf16
  astrozoo estimate cube_unet_huge --sizes lat=192 lon=288 --set in_vars=12 --grad-checkpointing --json
"""

from __future__ import annotations

import argparse

from astrozoo.cli.arguments import add_model_argument, amount, overrides, sizes
from astrozoo.cli.output import Output
from astrozoo.errors import ConfigError
from astrozoo.readable import format_bytes, format_count, format_flops


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model and what to do with it."""
    add_model_argument(parser)
    parser.add_argument("--batch", type=int, metavar="N", help="examples per step on one device (1)")
    parser.add_argument("--auto-batch", action="store_true", help="the largest power of two that fits instead")
    parser.add_argument("--memory", type=amount, metavar="BYTES", help="for --auto-batch, such as 80GiB (what is free)")
    parser.add_argument("--device", default="auto", help="whose kernels to follow: auto, cpu, cuda (auto)")
    parser.add_argument("--precision", default="fp32", help="fp32, or mixed precision bf16 or fp16 (fp32)")
    parser.add_argument("--optimizer", default="adamw", help="as in the training configuration (adamw)")
    parser.add_argument("--grad-checkpointing", action="store_true", help="recompute activations in the backward pass")
    parser.add_argument("--sizes", nargs="+", default=[], metavar="DIM=SIZE", help="sizes of free dimensions")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="override a field of the configuration"
    )


def run(args: argparse.Namespace, out: Output) -> int:
    """Print the estimate."""
    from astrozoo.training.estimate import estimate, largest_batch

    settings = {
        "precision": args.precision,
        "optimizer": args.optimizer,
        "grad_checkpointing": args.grad_checkpointing,
        "device": args.device,
        "sizes": sizes(args.sizes),
        "overrides": overrides(args.set),
    }
    if args.auto_batch and args.batch is not None:
        raise ConfigError(f"--batch {args.batch} and --auto-batch exclude each other; give one.")
    if args.memory is not None and not args.auto_batch:
        raise ConfigError("--memory is what --auto-batch fills; give both.")
    if args.auto_batch:
        result = largest_batch(args.name, memory=args.memory, **settings)
    else:
        result = estimate(args.name, batch_size=1 if args.batch is None else args.batch, **settings)
    if out.as_json:
        out.document(result.to_dict())
        return 0
    shapes = ", ".join(f"{name} {' x '.join(map(str, shape))}" for name, shape in result.inputs.items())
    out.table(
        ("", "amount", ""),
        [
            ("parameters", format_count(result.parameters), ""),
            ("forward pass", format_flops(result.flops_forward), "the whole batch"),
            ("training step", format_flops(result.flops_step), "forward and backward"),
            ("parameters and buffers", format_bytes(result.parameter_bytes), ""),
            ("gradients", format_bytes(result.gradient_bytes), ""),
            ("optimiser state", format_bytes(result.optimizer_bytes), result.optimizer),
            ("activations", format_bytes(result.activation_bytes), "kept for the backward pass"),
            ("batch", format_bytes(result.batch_bytes), shapes),
            ("peak of training", format_bytes(result.training_peak_bytes), "without kernel workspaces"),
            ("peak of inference", format_bytes(result.inference_peak_bytes), "without kernel workspaces"),
        ],
        title=f"{result.name}, batch {result.batch_size}, {result.precision}, {result.device}",
    )
    return 0
