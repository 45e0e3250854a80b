"""``jcv2 search``, ``jcv2 explain`` and ``jcv2 info``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import typer
from qdrant_client import models
from rich.table import Table
from rich.text import Text

from jcv2_plugin.cli.connection import Connection
from jcv2_plugin.collection.collection import ColbertCollection
from jcv2_plugin.console import out, print_table, quiet_libraries
from jcv2_plugin.documents import SearchHit
from jcv2_plugin.scoring.explanation import Explanation, explain

if TYPE_CHECKING:
    from jcv2_plugin.engines.first_stage import FirstStage

_HIGHLIGHT = "bold dark_orange3"


def run_search(
    query: str,
    connection: Connection,
    *,
    k: int,
    where: Sequence[str],
    candidates: int | None,
    exact: bool,
    first_stage: str | None,
    as_json: bool,
) -> None:
    """Print the best passages of a collection."""
    for option, given in (("--candidates", candidates), ("--first-stage", first_stage)):
        if exact and given is not None:
            raise typer.BadParameter("--exact ranks all documents. Give one of the two.", param_hint=option)
    selected = _where(where)
    with connection.open() as collection:
        quiet_libraries()
        hits = collection.search(
            query,
            k,
            filter=selected,
            candidates=candidates,
            exact=exact or None,
            first_stage=cast("FirstStage | None", first_stage),
            with_explanation=not as_json,
        )
        if as_json:
            rows = [{"id": hit.id, "score": hit.score, "text": hit.text, "metadata": hit.metadata} for hit in hits]
            typer.echo(json.dumps(rows, ensure_ascii=False))
            return
        if not hits:
            out.print("No document matches." if collection.count() else "The collection is empty.")
            return
        for rank, hit in enumerate(hits, start=1):
            _print_hit(rank, hit)


def _print_hit(rank: int, hit: SearchHit) -> None:
    out.print(Text.assemble((f"{rank}. ", "bold"), (f"{hit.score:.2f}", "cyan"), "  ", (hit.id, "green")))
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
        key, separator, value = condition.partition("=")
        if not separator or not key:
            raise typer.BadParameter(f"{condition!r} is not of the form key=value.", param_hint="--where")
        must.append(models.Filter(should=_readings(f"metadata.{key}", value)))
    return models.Filter(must=must)


def _readings(key: str, value: str) -> list[Any]:
    """A value as typed may be stored as text, or as the number or truth value that it spells."""
    readings: list[Any] = [models.FieldCondition(key=key, match=models.MatchValue(value=value))]
    try:
        parsed = json.loads(value)
    except ValueError:
        return readings
    if isinstance(parsed, bool):
        readings.append(models.FieldCondition(key=key, match=models.MatchValue(value=parsed)))
    elif isinstance(parsed, (int, float)):
        readings.append(models.FieldCondition(key=key, range=models.Range(gte=parsed, lte=parsed)))
    return readings


def run_explain(
    query: str,
    connection: Connection | None,
    *,
    document_id: str | None,
    text: str | None,
    model: str,
    dim: int | None,
    html: Path | None,
) -> None:
    """Print a query's matches in a document, and write the heat map if asked."""
    if (connection is None) == (text is None):
        raise typer.BadParameter("Give either --collection or --text.")
    if connection is None:
        quiet_libraries()
        from jcv2_plugin.encoder.model import JinaColbertEncoder

        encoder = JinaColbertEncoder.from_pretrained(model, dims=dim)
        explanation, title = explain(encoder, query, str(text), dim=dim, long_documents="split"), "the text given"
    else:
        with connection.open() as collection:
            quiet_libraries()
            chosen = document_id or _best_id(collection, query)
            explanation, title = collection.explain(query, chosen), chosen
    if html is not None:
        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_text(explanation.to_html(), encoding="utf-8")
    _print_explanation(explanation, title)
    if html is not None:
        out.print(f"Heat map: {html}", soft_wrap=True)


def _best_id(collection: ColbertCollection, query: str) -> str:
    hits = collection.search(query, 1)
    if not hits:
        raise typer.BadParameter("The collection is empty, so there is nothing to explain.")
    return hits[0].id


def _print_explanation(explanation: Explanation, title: str) -> None:
    passage = Text(explanation.text)
    strongest = max(float(explanation.contributions().max(initial=0.0)), 1e-6)
    for token, share in zip(explanation.document_tokens, explanation.contributions().tolist(), strict=True):
        if share > 0 and not token.is_special:
            # 256-colour oranges, from pale to deep.
            colour = ("color(223)", "color(216)", "color(209)", "color(202)")[min(int(4 * share / strongest), 3)]
            passage.stylize(f"black on {colour}", token.start, token.end)
    out.print(Text.assemble((f"{explanation.score:.2f}", "cyan"), "  ", (title, "green")))
    out.print(passage, soft_wrap=not out.is_terminal)
    out.print()
    table = Table("query token", "matched", "similarity", "", box=None)
    for match in explanation.matches:
        if match.query.is_special:
            continue
        found = match.document
        surface = found.token if found.is_special else explanation.text[found.start : found.end]
        bar = "█" * round(max(match.similarity, 0.0) * 20)
        table.add_row(
            Text(explanation.query[match.query.start : match.query.end]),
            Text(surface),
            f"{match.similarity:.3f}",
            bar,
        )
    out.print(table)


def run_info(connection: Connection, *, as_json: bool) -> None:
    """Print a collection's description."""
    with connection.open() as collection:
        described = {**collection.schema.to_dict(), "documents": collection.count()}
    if as_json:
        typer.echo(json.dumps(described))
        return
    table = Table.grid(padding=(0, 2))
    for key, value in described.items():
        table.add_row(key, Text(str(value)))
    print_table(table)
