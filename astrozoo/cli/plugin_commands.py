"""Commands that plugins add through the hook `astrozoo_cli_commands`."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from astrozoo.cli.app import COMMANDS
from astrozoo.errors import AstrozooPluginWarning
from astrozoo.registry import plugin_manager
from astrozoo.registry.hookspecs import CliCommand

__all__ = ["plugin_commands"]


def plugin_commands() -> dict[str, CliCommand]:
    """Commands by name. Built-in names stay ours, and the first plugin keeps a name; others are reported."""
    answers: Iterable[Iterable[CliCommand]] = plugin_manager().hook.astrozoo_cli_commands()
    commands: dict[str, CliCommand] = {}
    for command in (command for answer in answers for command in answer):
        if command.name in COMMANDS or command.name in commands:
            owner = "astrozoo" if command.name in COMMANDS else "another plugin"
            warnings.warn(
                f"The command {command.name!r} of {type(command).__module__} is left out: it belongs to {owner}.",
                AstrozooPluginWarning,
                stacklevel=2,
            )
        else:
            commands[command.name] = command
    return commands
