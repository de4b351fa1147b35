"""Builds the library if a compiler is there; installs without it, with a warning, if none is."""

import runpy
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

PACKAGE = Path(__file__).parent / "src" / "lightrec_native"


class BuildLibrary(build_ext):
    """Calls our own build: three objects with different flags, which an Extension cannot say."""

    def build_extension(self, ext):
        try:
            runpy.run_path(str(PACKAGE / "build.py"))["build"](Path(self.get_ext_fullpath(ext.name)))
        except RuntimeError as error:
            print(f"warning: lightrec-native is installed without its library: {error}", file=sys.stderr)

    def get_ext_filename(self, fullname):
        return f"{fullname.replace('.', '/')}.so"

    def copy_extensions_to_source(self):
        if all(Path(self.build_lib, self.get_ext_filename(e.name)).exists() for e in self.extensions):
            super().copy_extensions_to_source()


setup(
    ext_modules=[Extension("lightrec_native._scan", ["src/lightrec_native/scan.cpp"], optional=True)],
    cmdclass={"build_ext": BuildLibrary},
)
