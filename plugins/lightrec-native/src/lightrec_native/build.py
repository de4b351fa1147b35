"""Compiles scan.cpp; standard library only, because the installer runs it too."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("scan.cpp")
SEALED = sys.platform == "linux"  # elsewhere a library may be signed and must not be touched
FLAGS = ["-std=c++17", "-O3", "-ffp-contract=fast", "-fPIC", "-pthread", "-Wno-psabi", "-Wno-ignored-attributes"]


def build(target: Path) -> None:
    """Compiles the source into a shared library.

    Args:
        target: file to write.

    Raises:
        RuntimeError: no compiler, or its complaint.
    """
    wanted = os.environ.get("CXX")
    compiler = (
        shlex.split(wanted) if wanted else next(([c] for c in ("c++", "g++", "clang++") if shutil.which(c)), None)
    )
    if compiler is None:
        raise RuntimeError("no C++ compiler was found (looked for c++, g++, clang++; CXX names another).")
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    variants = [["-DLIGHTREC_X86"] if x86 else []]
    if x86:
        variants += [
            ["-DLIGHTREC_LANES=8", "-mavx2", "-mfma"],
            ["-DLIGHTREC_LANES=16", "-mavx512f", "-mavx512dq", "-mfma", "-mprefer-vector-width=512"],
        ]
    with tempfile.TemporaryDirectory() as folder:
        objects = [f"{folder}/{i}.o" for i in range(len(variants))]
        for flags, made in zip(variants, objects, strict=True):
            _run([*compiler, *FLAGS, *flags, "-c", str(SOURCE), "-o", made])
        linked = Path(folder, "scan.so")
        _run([*compiler, "-shared", "-pthread", *objects, "-o", str(linked)])
        target.parent.mkdir(parents=True, exist_ok=True)
        seal(linked)
        # complete before it has its name: a process that has the old file open keeps the old one
        unfinished = target.with_name(f"{target.name}.unfinished")
        shutil.copyfile(linked, unfinished)
        os.replace(unfinished, target)


def seal(library: Path) -> None:
    """Ends a library with its digest: the loader of Linux dies of a file that was cut short instead of refusing it."""
    if SEALED:
        content = library.read_bytes()
        library.write_bytes(content + hashlib.sha256(content).digest())


def damaged(library: Path) -> bool:
    """Says whether a library is not what `build` wrote."""
    content = library.read_bytes()
    return SEALED and hashlib.sha256(content[:-32]).digest() != content[-32:]


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise RuntimeError(f"{command[0]} could not be run: {error}") from error
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr.strip()[-500:]}")
