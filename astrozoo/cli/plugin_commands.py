"""Commands that plugins add through the hook `astrozoo_cli_commands`."""

from __future__ import annotations

from typing import Any

from astrozoo.cli.app import COMMANDS
from astrozoo.registry import current, plugin_manager
from astrozoo.registry.hookspecs import CliCommand

__all__ = ["plugin_commands"]


def plugin_commands() -> dict[str, CliCommand]:
    """Commands by name. Built-in names stay ours, and the first plugin by name keeps one; others are reported."""
    commands: dict[str, CliCommand] = {}
    owners = dict.fromkeys(COMMANDS, "astrozoo")
    # One implementation after the other, in pluggy's order, to know whose command it is.
    for implementation in reversed(plugin_manager().hook.astrozoo_cli_commands.get_hookimpls()):
        distribution = implementation.plugin_name.partition(":")[0]
        answer: Any = implementation.function()
        for command in answer or ():
            if command.name in owners:
                owner = owners[command.name]
                current().report(distribution, f"command {command.name!r} is left out: it belongs to {owner}")
            else:
                owners[command.name] = distribution
                commands[command.name] = command
    return commands
