"""Commands that are imported when they run, and options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from inspect import Parameter, Signature, signature
from typing import Annotated, Any, ClassVar, get_origin, get_type_hints

import typer
from typer.core import TyperCommand

from jcv2_plugin.console import CleanGroup


def command_of(function: Callable[..., Any], name: str) -> Any:
    """Return a function as a command of that name; see :func:`with_shared_options`."""
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    alone.command(name)(with_shared_options(function))
    return typer.main.get_command(alone)


def with_shared_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Replace a function's parameters that are dataclasses by their fields, for Typer.

    A field is an option if it is annotated with one. Other fields keep their default.
    """
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, tuple[type, list[str]]] = {}
    parameters: list[Parameter] = []
    for parameter in signature(function).parameters.values():
        kind = hints[parameter.name]
        if is_dataclass(kind) and isinstance(kind, type):
            own = get_type_hints(kind, include_extras=True)
            options = [one for one in fields(kind) if get_origin(own[one.name]) is Annotated]
            groups[parameter.name] = kind, [one.name for one in options]
            for one in options:
                default = Parameter.empty if one.default is MISSING else one.default
                parameters.append(
                    Parameter(one.name, Parameter.KEYWORD_ONLY, default=default, annotation=own[one.name])
                )
        else:
            parameters.append(parameter.replace(kind=Parameter.KEYWORD_ONLY, annotation=kind))

    def run(**values: Any) -> Any:
        for name, (kind, names) in groups.items():
            values[name] = kind(**{one: values.pop(one) for one in names})
        return function(**values)

    run.__doc__, run.__name__ = function.__doc__, function.__name__
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    vars(run)["__signature__"] = Signature(parameters)
    return run


class LazyCommand(TyperCommand):
    """A command or command group that is imported when it is called or its own help is requested.

    ``home`` is the place of a function or ``typer.Typer``, as ``module:name``. ``summary`` is shown in the list of
    commands.
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


class LazyGroup(CleanGroup):
    """A group of :class:`LazyCommand`."""

    package: ClassVar[str]
    """Package that contains the commands' modules."""
    homes: ClassVar[Mapping[str, tuple[str, str]]] = {}
    """For each command name, ``module:function`` and the line shown in the list of commands."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        for name, (home, summary) in self.homes.items():
            self.add_command(LazyCommand(name, f"{self.package}.{home}", summary))
