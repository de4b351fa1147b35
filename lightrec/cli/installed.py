"""`lightrec plugins list`: what is installed, by whom, and whether it works."""

from __future__ import annotations

import json

from lightrec import plugins
from lightrec.cli import scaffold
from lightrec.cli.options import Options


def run(command: str, argv: list[str]) -> int:
    """Lists plug-ins; imports none of them unless asked to check. Returns the exit code."""
    if argv[:1] == ["new"]:
        return scaffold.run(argv[1:])
    parser = Options(
        "lightrec plugins", description="List what is installed: models, encoders, objectives, data sources."
    )
    parser.add_argument("action", choices=["list"], nargs="?", default="list")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--check", action="store_true", help="import each one, to see whether it works")
    options = parser.parse_args(argv)
    found = plugins.installed()
    rows = [
        {
            "name": plugin.full_name,
            "kind": plugin.kind,
            "distribution": plugin.distribution,
            "version": plugin.version,
            "status": plugins.status(plugin, found, options.check),
            "value": plugin.value,
            "origin": plugin.origin,
        }
        for plugin in found
    ]
    if options.json:
        print(json.dumps(rows, indent=2))
        return 0
    columns = [name for name in rows[0] if name != "value"] if rows else []
    table = [columns, *([row[name] for name in columns] for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    return 0
