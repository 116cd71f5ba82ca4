"""The one error tree of edgekit.

Every error a user can meet is an `EdgekitError`. Its message is one sentence or two: the fact, what was
expected, and the next step. `exit_code` is what the command line returns: 1 when a check failed or the
work could not be finished, 2 when the request itself cannot be used.
"""

from __future__ import annotations


class EdgekitError(Exception):
    """Base of all errors raised on purpose by edgekit."""

    exit_code = 1


class UsageError(EdgekitError):
    """The request cannot be carried out as it was made: wrong arguments, missing file, existing output."""

    exit_code = 2


class MissingDependencyError(UsageError):
    """An optional package is not installed; the message names the extra that brings it."""


class RecipeError(UsageError):
    """A recipe cannot be loaded, or does not keep its own promises."""


class ModelError(UsageError):
    """A model file cannot be read, or holds something that edgekit cannot carry."""


class UnsupportedOperatorError(ModelError):
    """A model needs an operator that no runtime of edgekit has."""


class PackageError(UsageError):
    """A package cannot be read: not a package, a newer schema, a malformed manifest."""


class IntegrityError(PackageError):
    """A file of a package is not the file that edgekit wrote."""

    exit_code = 1


class SignatureError(IntegrityError):
    """A package is not signed by a key that is trusted, or was changed after it was signed."""


class DeviceError(EdgekitError):
    """Another machine could not be reached, or did not do what it was asked; what it had before is untouched."""


class InputError(UsageError):
    """An input tensor or input file does not fit the model."""


class CheckError(EdgekitError):
    """A check ran and failed: parity, tolerance, accuracy budget."""


class StorageError(EdgekitError):
    """The result could not be written: no space, no permission. What was there before is untouched."""


class RemoteError(EdgekitError):
    """Object storage denied, lost or did not give what was asked; what was fetched before is used on."""


class RemoteMissingError(RemoteError):
    """An object is not in its storage."""


class RemoteDeniedError(RemoteError):
    """The storage denies an object, or even to say whether it is there."""


class BackendError(EdgekitError):
    """A runtime (ONNX Runtime, TensorRT) refused a model or failed while running it."""


class SensorError(EdgekitError):
    """A power or temperature sensor cannot be read, or not any more."""
