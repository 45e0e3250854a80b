"""HTML heat map of an :class:`~jcv2_plugin.scoring.explanation.Explanation`: one page without external resources."""

from __future__ import annotations

import html
import json
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jcv2_plugin.encoder.scored_tokens import ScoredToken
    from jcv2_plugin.scoring.explanation import Explanation, TokenMatch

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
  :root {{ color-scheme: light; }}
  body {{ font: 16px/1.7 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }}
  h1 {{ font-size: 1.25rem; }}
  .note {{ color: #555; font-size: .9rem; }}
  .query button {{ font: inherit; padding: .1rem .45rem; margin: .1rem; border: 1px solid #bbb; border-radius: .4rem;
    background: #fff; cursor: pointer; }}
  .query button.special {{ color: #888; font-size: .8rem; }}
  .query button[aria-pressed=true] {{ border-color: #b34700; box-shadow: 0 0 0 2px #ffd9bf; }}
  .document {{ white-space: pre-wrap; border: 1px solid #ddd; border-radius: .5rem; padding: 1rem; margin: 1rem 0; }}
  .document span {{ border-radius: .2rem; }}
  table {{ border-collapse: collapse; font-size: .9rem; }}
  td, th {{ padding: .2rem .7rem; text-align: left; border-bottom: 1px solid #eee; }}
  td.number {{ text-align: right; font-variant-numeric: tabular-nums; }}
  .bar {{ display: inline-block; height: .7rem; background: #e8722a; border-radius: .2rem; }}
</style>
</head>
<body>
<h1>{query}</h1>
<p class="note">MaxSim score {score:.2f} over {rows} query vectors. The darker a word, the more of the score it
carries. Point at a query token to see what it matched; click to keep it.</p>
<p class="query">{buttons}</p>
<div class="document">{document}</div>
<table><thead><tr><th>query token</th><th>matched</th><th>similarity</th><th></th></tr></thead>
<tbody>{table}</tbody></table>
<script>
const similarities = {similarities};
const totals = {totals};
const tokens = [...document.querySelectorAll('.document span')];
const buttons = [...document.querySelectorAll('.query button')];
let kept = -1;
function paint(values) {{
  const highest = Math.max(...values, 1e-6);
  for (const token of tokens) {{
    const value = Math.max(values[+token.dataset.column], 0) / highest;
    token.style.background = value > .02 ? `rgba(232,114,42,${{(value * value * .85).toFixed(3)}})` : 'none';
    token.title = values[+token.dataset.column].toFixed(3);
  }}
}}
function show(row) {{ paint(row < 0 ? totals : similarities[row]); }}
buttons.forEach((button, row) => {{
  button.onmouseenter = button.onfocus = () => show(row);
  button.onmouseleave = button.onblur = () => show(kept);
  button.onclick = () => {{
    kept = kept === row ? -1 : row;
    buttons.forEach((other, index) => other.setAttribute('aria-pressed', String(index === kept)));
    show(kept);
  }};
}});
show(-1);
</script>
</body>
</html>
"""


def render(explanation: Explanation) -> str:
    """Render the HTML page, see :meth:`jcv2_plugin.scoring.explanation.Explanation.to_html`."""
    return _PAGE.format(
        title=html.escape(f"Why it matched: {explanation.query}"),
        query=html.escape(explanation.query),
        score=explanation.score,
        rows=len(explanation.query_tokens),
        buttons="".join(_button(token, explanation.query) for token in explanation.query_tokens),
        document=_document(explanation),
        table="".join(_row(match, explanation) for match in explanation.matches if not match.query.is_special),
        # Escape "<" so that no text can close the script element.
        similarities=json.dumps(np.round(explanation.similarities.astype(float), 3).tolist()).replace("<", "\\u003c"),
        totals=json.dumps(np.round(explanation.contributions().astype(float), 3).tolist()),
    )


def _surface(token: ScoredToken, text: str) -> str:
    return token.token if token.is_special else text[token.start : token.end]


def _button(token: ScoredToken, query: str) -> str:
    kind = ' class="special"' if token.is_special else ""
    return f'<button type="button" aria-pressed="false"{kind}>{html.escape(_surface(token, query))}</button>'


def _document(explanation: Explanation) -> str:
    parts: list[str] = []
    end = 0
    for column, token in enumerate(explanation.document_tokens):
        if token.is_special or token.start < end:
            continue
        parts.append(html.escape(explanation.text[end : token.start]))
        parts.append(f'<span data-column="{column}">{html.escape(explanation.text[token.start : token.end])}</span>')
        end = token.end
    parts.append(html.escape(explanation.text[end:]))
    return "".join(parts)


def _row(match: TokenMatch, explanation: Explanation) -> str:
    width = max(0.0, min(match.similarity, 1.0)) * 12
    return (
        f"<tr><td>{html.escape(_surface(match.query, explanation.query))}</td>"
        f"<td>{html.escape(_surface(match.document, explanation.text))}</td>"
        f'<td class="number">{match.similarity:.3f}</td>'
        f'<td><span class="bar" style="width:{width:.1f}rem"></span></td></tr>'
    )
