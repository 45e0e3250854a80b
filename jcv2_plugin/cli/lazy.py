"""Lazily imported commands, so that ``--help`` is fast."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup


def command_of(function: Callable[..., Any], name: str) -> Any:
    """Return a function as a command of that name."""
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    alone.command(name)(function)
    return typer.main.get_command(alone)


class LazyCommand(TyperCommand):
    """A command or command group that is imported when it is called or its own help is requested.

    Args:
        name: Name of the command.
        home: Location of a function or ``typer.Typer``, as ``module:name``.
        summary: Line shown in the list of commands.
    """

    def __init__(self, name: str, home: str, summary: str) -> None:
        super().__init__(name, help=summary)
        self._home = home

    def load(self) -> Any:
        """Import and return the actual command."""
        module, _, attribute = self._home.partition(":")
        found = getattr(import_module(module), attribute)
        if not isinstance(found, typer.Typer):
            return command_of(found, str(self.name))
        loaded = typer.main.get_command(found)
        loaded.name = self.name
        return loaded

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        """Create the context of the actual command."""
        return self.load().make_context(*arguments, **options)


class LazyGroup(TyperGroup):
    """A group of :class:`LazyCommand`."""

    package: ClassVar[str]
    """Package that contains the commands' modules."""
    homes: ClassVar[Mapping[str, tuple[str, str]]] = {}
    """For each command name, ``module:function`` and the line shown in the list of commands."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        for name, (home, summary) in self.homes.items():
            self.add_command(LazyCommand(name, f"{self.package}.{home}", summary))
