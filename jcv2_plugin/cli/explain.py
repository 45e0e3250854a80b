"""``jcv2 explain``: show which document tokens the query tokens matched."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from jcv2_plugin.cli.connection import OptionalConnection
from jcv2_plugin.collection.collection import ColbertCollection
from jcv2_plugin.console import name, out, quiet_libraries
from jcv2_plugin.encoder import DEFAULT_MODEL
from jcv2_plugin.encoder.named import load_encoder
from jcv2_plugin.files import write_atomically
from jcv2_plugin.scoring import explanation as explanations
from jcv2_plugin.scoring.explanation import Explanation


def explain(
    query: Annotated[str, typer.Argument(help="The question.")],
    connection: OptionalConnection,
    id: Annotated[str | None, typer.Option(help="Id of the document. Default: the best hit.")] = None,
    text: Annotated[str | None, typer.Option(help="A text to explain, instead of a collection's document.")] = None,
    model: Annotated[str, typer.Option(help="Model for --text.")] = DEFAULT_MODEL,
    dim: Annotated[int | None, typer.Option(help="Dimension for --text.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a heat map to this file.")] = None,
) -> None:
    """Show which document token each query token matched, and how well."""
    if bool(connection.location) == (text is not None):
        raise typer.BadParameter("Give either --collection or --text.")
    if text is not None:
        quiet_libraries()
        encoder = load_encoder(model, dims=dim)
        explanation, title = explanations.explain(encoder, query, text, dim=dim, long_documents="split"), "the text"
    else:
        with connection.open() as opened:
            quiet_libraries()
            title = id or _best_id(opened, query)
            explanation = opened.explain(query, title)
    if html is not None:
        html.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(html, explanation.to_html())
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
            # Oranges of the 256-colour palette, from light to dark.
            colour = ("color(223)", "color(216)", "color(209)", "color(202)")[min(int(4 * share / strongest), 3)]
            passage.stylize(f"black on {colour}", token.start, token.end)
    out.print(Text.assemble((f"{explanation.score:.2f}", "cyan"), "  ", (name(title), "green")))
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
            name(explanation.query[match.query.start : match.query.end]),
            name(surface),
            f"{match.similarity:.3f}",
            bar,
        )
    out.print(table)
