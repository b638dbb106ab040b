"""Print the shell code that completes commands, options and model names.

Install:
  bash   echo 'eval "$(astrozoo completion bash)"' >> ~/.bashrc
  zsh    echo 'eval "$(astrozoo completion zsh)"' >> ~/.zshrc
  fish   astrozoo completion fish > ~/.config/fish/completions/astrozoo.fish
"""

from __future__ import annotations

import argparse

from astrozoo.cli.output import Output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The shell."""
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))


def run(args: argparse.Namespace, out: Output) -> int:
    """Print argcomplete's code for the shell."""
    import argcomplete

    code = argcomplete.shellcode(["astrozoo"], shell=args.shell)
    if out.as_json:
        out.document({"shell": args.shell, "code": code})
    else:
        out.stream.write(code.rstrip() + "\n")
    return 0
