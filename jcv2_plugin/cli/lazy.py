"""Commands whose modules are imported when they run, so that ``--help`` is quick."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup


class LazyCommand(TyperCommand):
    """A command, or a group of them, that is imported when it is called or asked for its own help.

    Args:
        name: As it is typed.
        home: The module and the name in it of a function or a ``typer.Typer``, with a colon between.
        summary: The line that the list of commands shows.
    """

    def __init__(self, name: str, home: str, summary: str) -> None:
        super().__init__(name, help=summary)
        self._home = home

    def load(self) -> Any:
        """The command itself."""
        module, _, attribute = self._home.partition(":")
        found = getattr(import_module(module), attribute)
        if not isinstance(found, typer.Typer):
            alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
            alone.command(self.name)(found)
            found = alone
        loaded = typer.main.get_command(found)
        loaded.name = self.name
        return loaded

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        """Of the command itself, which then runs."""
        return self.load().make_context(*arguments, **options)


class LazyGroup(TyperGroup):
    """A group of :class:`LazyCommand`."""

    package: ClassVar[str]
    """Whose modules the commands are in."""
    homes: ClassVar[Mapping[str, tuple[str, str]]] = {}
    """By the command's name: its module and function, with a colon between, and the line that the list shows."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        for name, (home, summary) in self.homes.items():
            self.add_command(LazyCommand(name, f"{self.package}.{home}", summary))
