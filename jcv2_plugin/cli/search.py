"""``jcv2 search``: print the best passages and highlight the words that matched."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from qdrant_client import models
from rich.text import Text

from jcv2_plugin.cli.connection import Connection
from jcv2_plugin.cli.options import Json
from jcv2_plugin.console import name, out, quiet_libraries, to_json
from jcv2_plugin.documents import SearchHit
from jcv2_plugin.errors import UnsupportedFilterError
from jcv2_plugin.files import parse_json
from jcv2_plugin.filters import equals, metadata_path, metadata_paths

_HIGHLIGHT = "bold dark_orange3"


def search(
    query: Annotated[str, typer.Argument(help="The question.")],
    connection: Connection,
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Number of passages.")] = 5,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Search only documents with this metadata. Repeatable. In quotes, a value is a text: 'code=\"7\"'.",
        ),
    ] = None,
    candidates: Annotated[
        int | None, typer.Option(min=1, help="Number of candidates from the first stage. Default: 300 or more.")
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Rank all documents, without a first stage.")] = False,
    first_stage: Annotated[str | None, typer.Option(help="Another first stage that the collection stores.")] = None,
    as_json: Json = False,
) -> None:
    """Print the best passages, with the words that matched highlighted."""
    for option, given in (("--candidates", candidates), ("--first-stage", first_stage)):
        if exact and given is not None:
            raise typer.BadParameter(
                "--exact ranks all documents, without a first stage. Leave out one of the two options.",
                param_hint=option,
            )
    selected = _where(where or [])
    with connection.open() as opened:
        quiet_libraries()
        hits = opened.search(
            query,
            k,
            filter=selected,
            candidates=candidates,
            exact=exact or None,
            first_stage=first_stage,
            with_explanation=not as_json,
        )
        if as_json:
            rows = [{"id": hit.id, "score": hit.score, "text": hit.text, "metadata": hit.metadata} for hit in hits]
            typer.echo(to_json(rows))
            return
        if not hits:
            out.print("No document matches." if opened.count() else "The collection is empty.")
            return
        for rank, hit in enumerate(hits, start=1):
            _print_hit(rank, hit)


def _print_hit(rank: int, hit: SearchHit) -> None:
    out.print(Text.assemble((f"{rank}. ", "bold"), (f"{hit.score:.2f}", "cyan"), "  ", (name(hit.id), "green")))
    passage = Text(hit.text.strip())
    offset = len(hit.text) - len(hit.text.lstrip())
    for start, end in hit.explanation.matched_spans() if hit.explanation is not None else ():
        passage.stylize(_HIGHLIGHT, start - offset, end - offset)
    out.print(passage, soft_wrap=not out.is_terminal)
    out.print()


def _where(conditions: Sequence[str]) -> models.Filter | None:
    if not conditions:
        return None
    must: list[Any] = []
    for condition in conditions:
        paths, value = _parts(condition)
        must.append(models.Filter(should=[one for path in paths for one in _readings(path, value)]))
    return models.Filter(must=must)


def _parts(condition: str) -> tuple[list[str], str]:
    """Return the paths that the key of KEY=VALUE may mean, and the value. A quoted key is the name of an entry."""
    if condition.startswith('"'):
        key, rest = _unquoted(condition)
        separator, value = rest[:1], rest[1:]
    else:
        key, separator, value = condition.partition("=")
    if separator != "=" or not key:
        raise typer.BadParameter(
            f"{condition!r} is not of the form KEY=VALUE. Write a key that contains = in quotation marks: "
            """'"a=b"=value'.""",
            param_hint="--where",
        )
    try:
        return ([metadata_path([key])] if condition.startswith('"') else metadata_paths(key)), value
    except UnsupportedFilterError as error:
        raise typer.BadParameter(str(error), param_hint="--where") from error


def _unquoted(given: str) -> tuple[str, str]:
    """Split text that begins with a JSON string into that string and the rest."""
    try:
        text, end = json.JSONDecoder(strict=False).raw_decode(given)
    except ValueError as error:
        raise typer.BadParameter(
            f"{given!r} begins with a quotation mark, but not with a JSON string. Write quotation marks and "
            r"""backslashes in it as \" and \\.""",
            param_hint="--where",
        ) from error
    return str(text), given[end:]


def _readings(key: str, value: str) -> list[Any]:
    """Return the conditions that match a value as text and, if it can be parsed as one, as a number or boolean.

    A value in quotation marks is a text only.
    """
    if value.startswith('"'):
        text, rest = _unquoted(value)
        if rest:
            raise typer.BadParameter(f"{value!r} goes on behind the quotation mark.", param_hint="--where")
        return [models.FieldCondition(key=key, match=models.MatchValue(value=text))]
    readings: list[Any] = [models.FieldCondition(key=key, match=models.MatchValue(value=value))]
    try:
        parsed = parse_json(value)
    except ValueError:
        return readings
    if isinstance(parsed, int) and not -(2**63) <= parsed < 2**63:  # Qdrant has no such integers, nor infinity
        return readings
    if isinstance(parsed, (int, float)) and math.isfinite(parsed):
        try:
            readings.append(equals(key, parsed))
        except UnsupportedFilterError as error:
            raise typer.BadParameter(
                f"{error} If {value} is a text, write it in quotation marks: 'KEY=\"{value}\"'.", param_hint="--where"
            ) from error
    return readings
