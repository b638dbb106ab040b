"""Parse the command line, run one command, turn what goes wrong into a message and an exit status.

Exit status: 0 success; 1 a check failed or astrozoo raised an error; 2 wrong usage; 130 interrupted by Ctrl-C; 141 the
reader of the output went away. `--traceback` or ASTROZOO_DEBUG=1 shows where an error came from.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from astrozoo._version import __version__
from astrozoo.cli.output import Output
from astrozoo.errors import AstrozooError

__all__ = ["COMMANDS", "build_parser", "main"]

# Name to what it does; the module of the same name is imported only when the command is chosen.
COMMANDS = {
    "list": "List models, or attentions, by name and property.",
    "info": "Show what goes into a model, what comes out, what it costs and can do.",
    "plugins": "List installed plugins with their state.",
    "estimate": "Estimate parameters, operations and memory of training, without allocating any.",
    "train": "Train a model on files.",
    "eval": "Score a trained model against the baselines of its task.",
    "predict": "Apply a trained model to files and write the result in physical units.",
    "download": "Fetch weights into the local cache.",
    "convert": "Turn a pickled checkpoint into a model folder that can be shared.",
    "export": "Write a model as a torch.export program.",
    "check": "Run the conformance checks on models, built in or from a plugin.",
    "doctor": "Test whether everything works on this machine, in under a minute.",
    "bench": "Measure astrozoo against its peers.",
    "catalog": "Write the catalogue of a plugin's models.",
    "completion": "Print the shell code that completes commands, options and model names.",
}

# Modules of optional dependencies, and the extra that installs them.
_EXTRAS = {
    "accelerate": "train",
    "torchmetrics": "train",
    "timm": "train",
    "tensorboard": "train",
    "yaml": "cli",
    "rich": "cli",
    "argcomplete": "cli",
    "xarray": "data",
    "netCDF4": "data",
    "h5netcdf": "data",
    "zarr": "data",
    "dask": "data",
    "cftime": "data",
    "pint": "data",
    "pandas": "data",
    "scipy": "data",
    "matplotlib": "plot",
    "lightning": "lightning",
    "monai": "bench",
    "transformers": "bench",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the `astrozoo` command with `argv` (default: the process's arguments) and return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    stdout = sys.stdout
    out = Output(stdout)
    try:
        try:
            with contextlib.redirect_stdout(sys.stderr), _short_warnings():  # the parser may import a plugin
                parser = build_parser(_words_to_complete() or arguments)
            _complete(parser)
            args = parser.parse_args(arguments)
        except SystemExit as exit_:  # argparse has printed help (0) or what is wrong (2)
            return int(exit_.code or 0)
        out = Output(stdout, as_json=getattr(args, "json", None) is True)
        # A library or plugin that prints must not end up in the middle of a result.
        with contextlib.redirect_stdout(sys.stderr), _short_warnings():
            status = args.run(args, out)
        stdout.flush()
        return int(status)
    except KeyboardInterrupt:
        print("astrozoo: interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The interpreter flushes standard output once more at exit, which would raise again.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())
        return 141
    except (AstrozooError, OSError, ModuleNotFoundError) as error:
        if isinstance(error, ModuleNotFoundError) and _extra(error) is None:
            raise
        if "--traceback" in arguments or os.environ.get("ASTROZOO_DEBUG", "0") not in ("", "0"):
            raise
        message = _message(error)
        print(f"astrozoo: {message}", file=sys.stderr)
        if out.as_json:
            out.document({"error": {"type": type(error).__name__, "message": message}})
        return 1


def build_parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """The parser, with the options of the one command that `arguments` choose."""
    parser = argparse.ArgumentParser(
        prog="astrozoo",
        description="A plugin-based model zoo for astrobiology and planetary science on PyTorch.",
        epilog="`astrozoo COMMAND --help` explains a command. Plugins may add more, which\n"
        + "`astrozoo plugins --load` names.\n"
        + "Exit status: 0 success, 1 an error or a failed check, 2 wrong usage, 130 Ctrl-C, 141 broken pipe.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"astrozoo {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, formatter_class=argparse.RawDescriptionHelpFormatter)
        if name == chosen:
            module = importlib.import_module(f"astrozoo.cli.commands.{name}")
            command.description = module.__doc__
            _add_command(command, module.add_arguments, module.run)
    if chosen is not None and chosen not in COMMANDS:
        _add_plugin_commands(parser, commands, chosen)
    return parser


def _add_command(
    parser: argparse.ArgumentParser,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace, Output], int],
) -> None:
    add_arguments(parser)
    if parser.prog.split()[-1] != "bench":  # each benchmark has --json [FILE]
        parser.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    parser.set_defaults(run=run)


def _add_plugin_commands(parser: argparse.ArgumentParser, commands: Any, chosen: str) -> None:
    from astrozoo.cli.plugin_commands import plugin_commands
    from astrozoo.registry.names import suggest

    found = plugin_commands()
    if chosen not in found:
        parser.error(f"no command {chosen!r}.{suggest(chosen, [*COMMANDS, *found])} `astrozoo --help` lists them.")
    command = found[chosen]

    def run(args: argparse.Namespace, out: Output) -> int:
        with contextlib.redirect_stdout(out.stream):  # what the command itself prints is its result
            return command.run(args) or 0  # as Python does at exit, where a function returns nothing

    own = commands.add_parser(chosen, help=command.help, description=command.help)
    command.add_arguments(own)
    own.set_defaults(run=run)


def _words_to_complete() -> list[str]:
    """The finished words of the command line when the shell asks for completions, without the program's name."""
    line = os.environ.get("COMP_LINE", "") if "_ARGCOMPLETE" in os.environ else ""
    words = line.split()[1:]
    return words if line.endswith(" ") else words[:-1]


def _complete(parser: argparse.ArgumentParser) -> None:
    """Answer the shell when it asks for completions (and exit); otherwise do nothing."""
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser)


def _message(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        extra = _extra(error)
        return f"this needs {error.name}, which is not installed; pip install 'astrozoo[{extra}]' provides it."
    return str(error) or type(error).__name__


def _extra(error: ModuleNotFoundError) -> str | None:
    return _EXTRAS.get((error.name or "").partition(".")[0])


@contextlib.contextmanager
def _short_warnings() -> Iterator[None]:
    """Show warnings as one line: a user of the command cannot use the source line Python adds."""
    usual = warnings.formatwarning
    warnings.formatwarning = lambda message, *_args, **_kwargs: f"warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = usual
