"""What goes wrong with plugins. A message is one or two sentences: the fact, what was expected, the next step."""

from __future__ import annotations


class PluginError(Exception):
    """Base of every error raised on purpose by this package."""


class UnsupportedCallError(PluginError):
    """An operator cannot be used this way: rank, dtype, attribute, or a size that is too large for the target."""


class UnsupportedTargetError(PluginError):
    """A GPU that the kernels, or the compiler on this machine, do not know."""


class CompileError(PluginError):
    """A kernel does not compile; the message carries the compiler's own, with file and line."""


class MissingLibraryError(PluginError):
    """A library that the work needs is not installed; the message says how to get it."""
