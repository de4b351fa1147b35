"""`lightrec plugins check NAME`: runs the contracts on an installed plug-in and prints a verdict, one line per check.

The checks run in another process, so that one that hangs or takes its process down is a line of the verdict, too. What
they are for each kind of plug-in, and what they are run with, is in `lightrec.testing.check_selection`.
"""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict

from lightrec import extensions
from lightrec.cli.options import Options
from lightrec.errors import InputError
from lightrec.extensions import Plugin
from lightrec.extensions.worker import Worker

_START = 300.0


def run(argv: list[str]) -> int:
    """Checks a plug-in; returns 0 if nothing failed, else 1.

    Raises:
        InputError: no plug-in has this name, or several have; a wrong flag.
    """
    parser = Options("lightrec plugins check", description="Run the contracts on an installed plug-in.")
    parser.add_argument("name", help="its name, or distribution:name")
    parser.add_argument("--kind", choices=extensions.KINDS, help="where several kinds have the name")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="X=VALUE",
        help="argument of its constructor, as hidden_size=16; a part by its name",
    )
    parser.add_argument(
        "--within", metavar="MODEL", help="model that an objective is checked in (default: a small SASRec)"
    )
    parser.add_argument("--skip", action="append", default=[], metavar="CHECK", help="leave a check out, as speed")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds that a check may take (%(default)g)")
    options = parser.parse_args(argv)
    plugin = _find(options.name, options.kind)
    given = dict(_assignment(text) for text in options.set)
    job = {"plugin": asdict(plugin), "given": given, "within": options.within, "skip": options.skip}
    results, built = _results(plugin, job, options.timeout, quiet=options.json)
    counts = {word: sum(r["status"] == word for r in results) for word in ("ok", "failed", "skipped")}
    if options.json:
        about = {
            "name": plugin.name,
            "kind": plugin.kind,
            "distribution": plugin.distribution,
            "version": plugin.version,
            "built_with": built,
            "ok": not counts["failed"],
            "checks": results,
        }
        print(json.dumps(about, indent=2))
    else:
        verdict = "keeps the contract" if not counts["failed"] else "does not keep the contract"
        summary = ", ".join(f"{count} {word}" for word, count in counts.items())
        print(f"{plugin.full_name} {plugin.version} {verdict}: {summary}")
    return 1 if counts["failed"] else 0


def _find(name: str, kind: str | None) -> Plugin:
    """Resolves a name of any kind.

    Raises:
        InputError: there is none, or there are several.
    """
    if kind is not None:
        return extensions.resolve(kind, name)
    short = name.rpartition(":")[2]
    kinds = list(dict.fromkeys(p.kind for p in extensions.installed() if name in (p.name, p.full_name)))
    if len(kinds) == 1:
        return extensions.resolve(kinds[0], name)
    if kinds:
        raise InputError(f"{name!r} is the name of several: add {' or '.join(f'--kind {kind}' for kind in kinds)}.")
    hidden = next((p for p in extensions.everything() if p.name == short and (p.hidden or p.problem)), None)
    if hidden:
        raise InputError(f"{hidden.full_name} is {extensions.status(hidden, [])}.")
    near = extensions.suggestion(short, [p.name for p in extensions.installed()]) or ";"
    raise InputError(f"no plug-in is called {name!r}{near} see `lightrec plugins list`.")


def _assignment(text: str) -> tuple[str, object]:
    import yaml

    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise InputError(f"--set {text!r} must be an argument and its value, as in hidden_size=16.")
    if value.replace("-", "").replace(".", "").replace("e", "").isdigit():  # YAML takes 1e-3 for text
        return name, int(value) if value.lstrip("-").isdigit() else float(value)
    return name, yaml.safe_load(value)


def _results(plugin: Plugin, job: dict, timeout: float, quiet: bool) -> tuple[list[dict], dict | None]:
    """Runs all checks, in as many processes as it takes; returns results in order, and what the plug-in was built with.

    Raises:
        InputError: the plug-in cannot be built with what was given, or a check to skip is none.
    """
    results: list[dict] = []
    built = None
    while True:
        job["done"] = [r["check"] for r in results]
        running = None
        with Worker("from lightrec.testing.check_report import answer; answer()", job) as worker:
            try:
                while (found := worker.answer(timeout if running else _START + timeout)) is not None:
                    if "error" in found:
                        raise InputError(found["error"])
                    if "end" in found:
                        return results, built
                    if "built" in found:
                        if not quiet and built is None:
                            print(_title(plugin, found["built"]), flush=True)
                        built = found["built"]
                    elif "running" in found:
                        running = found["running"]
                    else:
                        results.append(_show(found, quiet))
                reason = worker.obituary()
            except TimeoutError:
                reason = f"it did not end within {timeout:g} s (--timeout)"
        results.append(
            _show({"check": running or "import", "status": "failed", "reason": reason, "seconds": None}, quiet)
        )
        if running in (None, "import", "construction"):  # without which nothing else can be run
            return results, built


def _title(plugin: Plugin, built: dict) -> str:
    arguments = ", ".join(f"{name}={value}" for name, value in built.items())
    return f"{plugin.full_name} {plugin.version} ({plugin.kind})" + (f", built with {arguments}" if arguments else "")


def _show(result: dict, quiet: bool) -> dict:
    if not quiet:
        seconds = "" if result["seconds"] is None else f"{result['seconds']:.1f} s"
        head = f"{result['status']:<8} {result['check']:<14} {seconds:>8}  "
        lines = textwrap.wrap(result["reason"], 110 - len(head)) or [""]
        print((head + ("\n" + " " * len(head)).join(lines)).rstrip(), flush=True)
    return result
