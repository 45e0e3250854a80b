"""Sphinx roles in docstrings, such as ``:class:`Name```, as links on the documentation site.

Docstrings are written with roles, which editors understand; mkdocstrings reads Markdown. A name is looked up as Python
would where the docstring stands. What the site has no place for stays a word in code.
"""

from __future__ import annotations

import re
from html import escape
from typing import Any

from griffe import Extension, Module, NameResolutionError, Object

_ROLE = re.compile(r":(?:py:)?(?:attr|class|data|exc|func|meth|mod|obj):`(?P<short>~?)(?P<name>[\w.]+)`")


class Roles(Extension):
    """Rewrites the docstrings of a package once all of it is loaded."""

    def on_package(self, *, pkg: Module, **kwargs: Any) -> None:
        """Turn roles into references, which may lead nowhere."""
        _rewrite(pkg)


def _rewrite(obj: Object) -> None:
    if obj.docstring is not None:
        obj.docstring.value = _ROLE.sub(lambda role: _link(obj, role), obj.docstring.value)
    for member in obj.members.values():
        if isinstance(member, Object):  # and no alias, whose object has a place of its own
            _rewrite(member)


def _link(obj: Object, role: re.Match[str]) -> str:
    name = role["name"]
    shown = name.rpartition(".")[2] if role["short"] else name
    return f'<autoref optional hover identifier="{escape(_path(obj, name))}"><code>{escape(shown)}</code></autoref>'


def _path(obj: Object, name: str) -> str:
    """The full name, as far as it can be told."""
    first, dot, rest = name.partition(".")
    try:
        return obj.resolve(first) + dot + rest
    except NameResolutionError:
        return name
