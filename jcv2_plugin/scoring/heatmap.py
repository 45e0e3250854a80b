"""HTML heat map of an :class:`~jcv2_plugin.scoring.explanation.Explanation`: one page without external resources."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jcv2_plugin.encoder.scored_tokens import ScoredToken
    from jcv2_plugin.scoring.explanation import Explanation


def render(explanation: Explanation) -> str:
    """Render the HTML page, see :meth:`jcv2_plugin.scoring.explanation.Explanation.to_html`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("jcv2_plugin.scoring", ".")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    query, text = explanation.query, explanation.text
    return environment.get_template("heatmap.html.j2").render(
        explanation=explanation,
        buttons=[(_surface(token, query), token.is_special) for token in explanation.query_tokens],
        pieces=_pieces(explanation),
        matches=[
            (_surface(match.query, query), _surface(match.document, text), match.similarity)
            for match in explanation.matches
            if not match.query.is_special
        ],
        similarities=np.round(explanation.similarities.astype(float), 3).tolist(),
        totals=np.round(explanation.contributions().astype(float), 3).tolist(),
    )


def _surface(token: ScoredToken, text: str) -> str:
    return token.token if token.is_special else text[token.start : token.end]


def _pieces(explanation: Explanation) -> list[tuple[str, int | None]]:
    """Return the text in pieces, with the column of each token, or None for what is between tokens."""
    pieces: list[tuple[str, int | None]] = []
    end = 0
    for column, token in enumerate(explanation.document_tokens):
        if not token.is_special and token.start >= end:
            pieces += [(explanation.text[end : token.start], None), (explanation.text[token.start : token.end], column)]
            end = token.end
    return [*pieces, (explanation.text[end:], None)]
