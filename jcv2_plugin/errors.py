"""Every error of the package: one base, one subclass per thing a caller can act on.

Each message names the thing, the offending value and the way out. Errors that are also an ordinary Python
error (a bad value, a missing file) inherit from it too, so that generic handlers keep working.
"""

from __future__ import annotations


class Jcv2Error(Exception):
    """Base of all errors raised by this package."""


class ModelNotFoundError(Jcv2Error, FileNotFoundError):
    """A model name is neither a folder, nor shipped with the package, nor to be had from the hub."""


class ModelLayoutError(Jcv2Error, ValueError):
    """A model folder is there but cannot be read as a multi-vector model without remote code or pickle."""


class UnknownDimError(Jcv2Error, ValueError):
    """The model has no head for a dimension. Heads are untied: one is never sliced out of another."""


class InvalidDocumentError(Jcv2Error, ValueError):
    """A document, id or metadata cannot be stored. Nothing of the call was written."""


class DocumentTooLongError(InvalidDocumentError):
    """A document has more tokens than the model takes, or more floats than Qdrant takes for one point."""


class InvalidVectorError(Jcv2Error, ValueError):
    """Vectors are not finite, or of another dimension than the collection's."""


class CollectionError(Jcv2Error):
    """Base of the errors about a collection as a whole."""


class CollectionNotFoundError(CollectionError, FileNotFoundError):
    """There is no collection at this location."""


class CollectionExistsError(CollectionError, FileExistsError):
    """There is a collection at this location already."""


class CollectionLockedError(CollectionError):
    """Another process, or another object in this one, has the folder open."""


class CollectionCorruptError(CollectionError):
    """A collection's description is missing or unreadable."""


class CollectionMismatchError(CollectionError, ValueError):
    """A collection was made with another model, dimension or preprocessing than the one offered."""


class CollectionAccessError(CollectionError):
    """A Qdrant server wants a key, or one that may do more than the key given."""


class ServerLimitError(CollectionError):
    """A request goes past a limit of the server, or does what the collection's strict mode forbids."""


class ServerBusyError(CollectionError):
    """The server cannot take a request now (a rate limit, overload, a shard that is away). Later it may."""


class MissingPackageError(Jcv2Error, ImportError):
    """Something needs a package that an extra of this one brings."""


class InvalidQueryError(Jcv2Error, ValueError):
    """A query is empty or no string, or the number of results asked for is not positive."""


class InvalidOptionError(Jcv2Error, ValueError):
    """A setting is none of those there are, or out of range."""


class UnsupportedFilterError(Jcv2Error, ValueError):
    """A filter has a condition, an operator or a value that the engine has no counterpart for."""
