"""Failures of Qdrant Edge, and the exceptions that a user gets.

Edge has no exceptions of its own: its failures are told apart by the operating system's error number in their text.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from jcv2_plugin.errors import CollectionAccessError, CollectionCorruptError, CollectionError, DiskFullError, Jcv2Error
from jcv2_plugin.files import is_disk_full
from jcv2_plugin.transport import shortened

_OS_ERROR = re.compile(r"os error (\d+)")
_UNREADABLE_DATA = re.compile(r"deseriali|decode|corrupt|checksum|unexpected end|IO error|panic", re.IGNORECASE)
_OF_THE_SYSTEM: Mapping[int, tuple[type[CollectionError], str]] = {
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS),
        (CollectionAccessError, "Make the folder and all files in it writable, or copy it to a writable place."),
    ),
    **dict.fromkeys(
        (errno.EMFILE, errno.ENFILE), (CollectionError, "Close other collections, or raise the limit (ulimit -n).")
    ),
    errno.ENOMEM: (CollectionError, "Memory ran out. Use less of it, or send less at a time."),
}
_REPAIR = (
    CollectionCorruptError,
    "Files of the collection are damaged, or were changed by another program. Check it with jcv2 verify, or restore it "
    "from a backup.",
)


@contextmanager
def edge_errors(title: str, otherwise: tuple[type[CollectionError], str] | None = None) -> Iterator[None]:
    """Translate errors of Qdrant Edge, see :func:`edge_error`. Ours and requests to stop pass."""
    try:
        yield
    except BaseException as error:
        is_panic = type(error).__name__ == "PanicException"  # not an Exception
        if isinstance(error, Jcv2Error) or not (is_panic or isinstance(error, Exception)):
            raise
        raise edge_error(error, title, otherwise) from error


def edge_error(
    error: BaseException, title: str, otherwise: tuple[type[CollectionError], str] | None = None
) -> Jcv2Error:
    """Translate an error of Qdrant Edge. ``otherwise`` are kind and remedy unless the operating system refused; by
    default, the text tells damaged files from wrong calls.
    """
    reason = shortened(str(error)) or type(error).__name__
    if is_disk_full(error):
        return DiskFullError(
            f"{title}: the disk is full ({reason}), and Qdrant Edge writes to a collection's folder even to read it. "
            "Free some space. The collection itself is intact."
        )
    found = _OS_ERROR.search(reason)
    is_damage = isinstance(error, OSError) or type(error).__name__ == "PanicException"
    damaged = found is not None or is_damage or _UNREADABLE_DATA.search(reason)
    usual = _REPAIR if damaged else (CollectionError, "Check the call, and the version of qdrant-edge-py.")
    number = errno.ENOMEM if isinstance(error, MemoryError) else getattr(error, "errno", None)
    number = int(found[1]) if found is not None else number or 0
    kind, remedy = _OF_THE_SYSTEM.get(number, otherwise or usual)
    return kind(f"{title}: Qdrant Edge failed: {reason}{'' if reason.endswith('.') else '.'} {remedy}")
