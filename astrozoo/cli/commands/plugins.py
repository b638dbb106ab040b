"""List installed plugins: what each offers, whether it works, and the reason if not.

Nothing of a plugin is imported unless --load asks for it; until then its state is `not loaded`.

States: ok, not loaded, failed, blocked (by ASTROZOO_DISABLE_PLUGINS), ambiguous (a name that others offer too).
The exit status is 1 when one has failed.
"""

from __future__ import annotations

import argparse

from astrozoo.cli.output import Output
from astrozoo.readable import format_seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Whether to import them."""
    parser.add_argument("--load", action="store_true", help="import everything first, to learn what of it works")


def run(args: argparse.Namespace, out: Output) -> int:
    """Print one row per plugin; the commands they add where they were loaded."""
    from astrozoo.registry import list_plugins

    commands: dict[str, str] = {}
    if args.load:
        from astrozoo.cli.plugin_commands import plugin_commands

        commands = {name: command.help for name, command in plugin_commands().items()}
    plugins = list_plugins(load=args.load)
    if out.as_json:
        out.document({"plugins": plugins, "commands": commands})
    else:
        rows = [
            (
                plugin.name,
                plugin.version,
                plugin.state,
                len(plugin.models),
                len(plugin.attentions),
                len(plugin.hooks),
                format_seconds(plugin.import_seconds) if plugin.import_seconds else "",
                plugin.reason,
            )
            for plugin in plugins
        ]
        out.table(("plugin", "version", "state", "models", "attentions", "hooks", "import", "reason"), rows)
        if commands:
            out.line()
            out.table(("command", "what it does"), list(commands.items()))
    return 1 if any(plugin.state == "failed" for plugin in plugins) else 0
