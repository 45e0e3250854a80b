"""Exceptions raised by this package.

All derive from :class:`Jcv2Error`. Each message names what failed, the offending value and how to fix it. Exceptions
that correspond to a built-in one, such as ``ValueError`` or ``FileNotFoundError``, also inherit from it.
"""

from __future__ import annotations


class Jcv2Error(Exception):
    """Base class of all exceptions raised by this package."""


class ModelNotFoundError(Jcv2Error, FileNotFoundError):
    """A model is not a local folder, not bundled with the package, and not available from the hub."""


class ModelLayoutError(Jcv2Error, ValueError):
    """A model folder exists but cannot be loaded as a multi-vector model without remote code or pickle."""


class UnknownDimError(Jcv2Error, ValueError):
    """The model has no projection head for a dimension. Heads are not weight-tied, so none is sliced out of another."""


class InvalidDocumentError(Jcv2Error, ValueError):
    """A document, id or metadata cannot be stored. The call wrote nothing."""


class DocumentTooLongError(InvalidDocumentError):
    """A document has more tokens than the model accepts, or more floats than Qdrant accepts for one point."""


class InvalidVectorError(Jcv2Error, ValueError):
    """Vectors are not finite, or do not have the collection's dimension."""


class EncoderServerError(Jcv2Error):
    """A server of encoders cannot be reached, does not answer in time, or refuses a request."""


class EncoderAccessError(EncoderServerError):
    """A server of encoders requires an API key, or another one."""


class EncoderBusyError(EncoderServerError):
    """A server of encoders is temporarily unable to handle a request, also after several attempts."""


class EncoderAnswerError(EncoderServerError, ValueError):
    """An answer is not of a server of encoders, or does not fit the request. Nothing of it was stored."""


class TokensUnknownError(Jcv2Error, ValueError):
    """A server of encoders does not return the tokens of texts, which BM25 and explanations need."""


class CollectionError(Jcv2Error):
    """Base class of exceptions about a whole collection."""


class CollectionNotFoundError(CollectionError, FileNotFoundError):
    """There is no collection at this location."""


class CollectionExistsError(CollectionError, FileExistsError):
    """There is already a collection at this location."""


class CollectionLockedError(CollectionError):
    """The folder is open in another process, or in another object of this one."""


class ForkedProcessError(CollectionError):
    """A collection, or an encoder on an accelerator, was opened before this process was forked."""


class CollectionCorruptError(CollectionError):
    """A collection's description is missing or unreadable."""


class CollectionUnfinishedError(CollectionCorruptError):
    """Creating or restoring a collection was interrupted. Repeat it, or drop the collection."""


class CollectionMismatchError(CollectionError, ValueError):
    """A collection was created with another model, dimension or preprocessing than the given one."""


class CollectionAccessError(CollectionError):
    """A Qdrant server requires an API key, or one with more permissions, or a folder is not writable."""


class ServerLimitError(CollectionError):
    """A request exceeds a limit of the server, or is forbidden by the collection's strict mode."""


class ServerBusyError(CollectionError):
    """The server is temporarily unable to handle a request (rate limit, overload, unavailable shard)."""


class DiskFullError(Jcv2Error, OSError):
    """The disk is full. What was stored before is unchanged."""


class MissingPackageError(Jcv2Error, ImportError):
    """A feature needs a package that one of our extras installs."""


class InvalidQueryError(Jcv2Error, ValueError):
    """A query is empty or not a string, or the requested number of results is not positive."""


class InvalidOptionError(Jcv2Error, ValueError):
    """An option has an unknown value, or is out of range."""


class UnsupportedFilterError(Jcv2Error, ValueError):
    """A filter has a condition, an operator or a value that the engine does not support."""
