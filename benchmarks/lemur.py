"""LEMUR beside the stage ``pooled``: what each finds of what exact MaxSim finds, at equal size and larger.

LEMUR (https://arxiv.org/abs/2601.21853) learns one vector per document. A document's MaxSim is a sum over the query's
tokens of the token's best similarity to the document. A small network maps a token to ``size`` numbers; it is trained
so that a linear layer on top predicts these best similarities for a sample of documents. The layer is then dropped: a
document's vector is the least-squares solution on a fixed sample of tokens, a query's vector is the sum of its tokens'.

The network is trained on tokens of the collection's documents, of its passages encoded as queries, or of the queries
of $JCV2_DATA/train. Each stage alone and merged with BM25 as in the hybrid; candidates are exact by each stage, so no
graph misses any. Each measured collection is kept in build/lemur, so an interrupted run goes on where it was.

    python benchmarks/lemur.py
    python benchmarks/lemur.py --collections qed-nq-en --tokens queries     # in three minutes
"""

from __future__ import annotations

import argparse
import json
import lzma
import shlex
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from encoded import DATA, PACKAGES, ROOT, read_set, say
from large_texts import DIM, LENGTH, read_large
from machine import machine
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor, nn

from jcv2_plugin import JinaColbertEncoder
from jcv2_plugin.collection.search import CANDIDATES
from jcv2_plugin.engines.base import RRF_K
from jcv2_plugin.engines.first_stage import Bm25Stage, PooledStage, SparseVector
from jcv2_plugin.evaluation.beir import BeirDataset

OUTPUT = ROOT / "build" / "lemur.json"
KEPT = ROOT / "build" / "lemur"
LARGE = "large"
MULTILINGUAL = {"tydi-ko": "ko"}
"""Sets measured with mini-multilingual, and the language of their training queries."""
COLLECTIONS = ("qed-nq-en", "tydi-en", "cosqa-dev", *MULTILINGUAL, LARGE)
TOKENS = ("documents", "passages as queries", "queries")
SIZES = (DIM, 2 * DIM, 4 * DIM)
NUMBERS = (50, 100, 200, CANDIDATES)
K = 10
NEW = 1_000
_BLOCK_DOCUMENTS = 32
_BLOCK_TOKENS = 1024


@dataclass(frozen=True)
class Training:
    """How LEMUR is trained. The rate was tried on queries other than those measured; the counts keep it within minutes.

    Attributes:
        documents: Documents whose similarities the network predicts.
        tokens: Tokens that it is trained on.
        fitted: Tokens that documents' vectors are fitted to.
        epochs: Passes over the tokens.
        batch: Tokens in a step.
        rate: Learning rate of Adam.
        clip: Largest norm of the gradient.
        ridge: Ridge penalty of the fit, to the mean square of the network's outputs.
    """

    documents: int = 1024
    tokens: int = 32_768
    fitted: int = 8192
    epochs: int = 15
    batch: int = 512
    rate: float = 1e-2
    clip: float = 0.5
    ridge: float = 1e-4


@dataclass
class Collection:
    """Documents and queries with their token vectors.

    Attributes:
        name: Of the set, or ``large``.
        encoder: Of the vectors.
        texts: Of the documents.
        vectors: Of each document, ``(tokens, dim)``.
        queries: Texts, none of which is trained on.
        query_vectors: Of each query.
    """

    name: str
    encoder: JinaColbertEncoder
    texts: list[str]
    vectors: list[NDArray[Any]]
    queries: list[str]
    query_vectors: list[NDArray[np.float32]]


def read(name: str, passages: int, queries: int) -> Collection:
    """A set, or as many passages of ``large_texts.py``. English sets are those of their passages that are there."""
    if name in MULTILINGUAL:
        encoder = JinaColbertEncoder.from_pretrained("mini-multilingual", dims=DIM, device="cpu")
        data = read_set(name, encoder, DIM, queries)
        asked = list(data.queries)
        return Collection(
            name,
            encoder,
            [document.text for document in data.documents],
            data.vectors,
            [data.queries[query] for query in asked],
            [data.query_vectors[query] for query in asked],
        )
    encoder = JinaColbertEncoder.from_pretrained("mini", dims=DIM, device="cpu", document_length=LENGTH)
    corpus = read_large(passages, queries)
    if name == LARGE:
        return Collection(name, encoder, corpus.texts, corpus.vectors, corpus.queries, corpus.query_vectors)
    dataset = BeirDataset.read(DATA / name)
    own = {document.text for document in dataset.documents()}
    chosen = [number for number, text in enumerate(corpus.texts) if text in own]
    asked = list(dataset.queries.values())[:queries]
    return Collection(
        name,
        encoder,
        [corpus.texts[number] for number in chosen],
        [corpus.vectors[number] for number in chosen],
        asked,
        encoder.query_vectors(asked, DIM),
    )


def training_tokens(data: Collection, kind: str, count: int) -> Tensor:
    """Token vectors to train on, in random order: ``(count, dim)``, or fewer if there are not so many."""
    chance = np.random.default_rng(0)
    if kind == "documents":
        ends = np.cumsum([len(one) for one in data.vectors])
        chosen = np.sort(chance.choice(ends[-1], min(count, ends[-1]), replace=False))
        owners = np.searchsorted(ends, chosen, side="right")
        rows = [data.vectors[owner][token - ends[owner]] for owner, token in zip(owners, chosen, strict=True)]
        tokens = np.stack(rows)
    else:
        texts = data.texts if kind == "passages as queries" else training_queries(data)
        order = chance.permutation(len(texts))
        found: list[NDArray[np.float32]] = []
        for start in range(0, len(order), 250):
            if sum(map(len, found)) >= count:
                break
            found += data.encoder.query_vectors([texts[number] for number in order[start : start + 250]], DIM)
        tokens = np.concatenate(found)
    return torch.from_numpy(tokens[chance.permutation(len(tokens))[:count]].astype(np.float32))


def training_queries(data: Collection) -> list[str]:
    """The queries of the training pairs in the collection's language, each once, without those that are measured."""
    language = MULTILINGUAL.get(data.name, "en")
    with lzma.open(DATA / "train" / "pairs.jsonl.xz", "rt", encoding="utf-8") as lines:
        pairs = [json.loads(line) for line in lines]
    measured = set(data.queries)
    return list(dict.fromkeys(pair["query"] for pair in pairs if pair["lang"] == language).keys() - measured)


def best_similarities(tokens: Tensor, documents: Sequence[NDArray[Any]]) -> Tensor:
    """The similarity of each token to the nearest token of each document: ``(tokens, documents)``."""
    found = torch.empty(len(documents), len(tokens))
    order = sorted(range(len(documents)), key=lambda number: len(documents[number]))
    for start in range(0, len(order), _BLOCK_DOCUMENTS):
        block = order[start : start + _BLOCK_DOCUMENTS]
        longest = len(documents[block[-1]])
        # Repeating a row changes no maximum.
        rows = np.stack([documents[n][np.minimum(np.arange(longest), len(documents[n]) - 1)] for n in block])
        flat = torch.from_numpy(rows.reshape(-1, rows.shape[-1]).astype(np.float32))
        for first in range(0, len(tokens), _BLOCK_TOKENS):
            part = slice(first, first + _BLOCK_TOKENS)
            similarities = (flat @ tokens[part].T).view(len(block), longest, -1)
            found[block, part] = similarities.amax(dim=1)
    return found.T


def sums(values: Tensor, lengths: Sequence[int]) -> Tensor:
    """Sums of consecutive rows, one for each length."""
    owners = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return torch.zeros(len(lengths), values.shape[1]).index_add_(0, owners, values)


class Lemur:
    """A trained network with what fits documents' vectors.

    Attributes:
        network: From a token to ``size`` numbers.
        fitted: Tokens that documents are fitted to, ``(fitted, dim)``.
        inverse: The ridge solution for them, ``(size, fitted)``.
    """

    def __init__(self, size: int, tokens: Tensor, targets: Tensor, training: Training) -> None:
        """Train on tokens and their standardised best similarities to a sample of documents."""
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(tokens.shape[1], size), nn.LayerNorm(size), nn.GELU())
        model = nn.Sequential(self.network, nn.Linear(size, targets.shape[1], bias=False))
        optimizer = torch.optim.Adam(model.parameters(), training.rate)
        steps = training.epochs * (len(tokens) // training.batch)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(training.epochs):
            order = torch.randperm(len(tokens))
            for start in range(0, len(tokens) - training.batch + 1, training.batch):
                rows = order[start : start + training.batch]
                loss = nn.functional.mse_loss(model(tokens[rows]), targets[rows])
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), training.clip)
                optimizer.step()
                schedule.step()
        self.fitted = tokens[: training.fitted]
        outputs = self.outputs(self.fitted).double()
        square = outputs.T @ outputs
        penalty = training.ridge * square.diagonal().mean() * torch.eye(size)
        self.inverse = torch.linalg.solve(square + penalty, outputs.T).float()

    @torch.inference_mode()
    def outputs(self, tokens: Tensor) -> Tensor:
        """The network's outputs, ``(tokens, size)``."""
        return self.network(tokens)

    def documents(self, similarities: Tensor) -> Tensor:
        """Documents' vectors from the best similarities of ``fitted`` to them: ``(documents, size)``."""
        return (self.inverse @ similarities).T

    @property
    def stored_bytes(self) -> int:
        """Of the network, the tokens and the inverse, in float32."""
        parameters = sum(one.numel() for one in self.network.parameters())
        return 4 * (parameters + self.fitted.numel() + self.inverse.numel())


def bm25_scores(data: Collection) -> NDArray[np.float32]:
    """The scores of the stage ``bm25`` with Qdrant's IDF, ``(queries, documents)``."""
    stage = Bm25Stage(data.encoder.tokenized)
    none = np.empty((0, DIM), np.float32)
    width = len(data.encoder.tokenizer)
    ids = data.encoder.tokenized(data.texts).ids
    documents = _sparse([stage.document("", none, own) for own in ids], width)
    queries = _sparse([stage.query(text, none) for text in data.queries], width)
    holding = np.bincount(documents.indices, minlength=width)
    idf = np.log(1 + (len(data.texts) - holding + 0.5) / (holding + 0.5))
    queries.data *= idf[queries.indices].astype(np.float32)
    found: NDArray[np.float32] = (queries @ documents.T).toarray()
    return found


def _sparse(vectors: Sequence[SparseVector], width: int) -> csr_array:
    ends = np.cumsum([0, *(len(one.indices) for one in vectors)])
    values = np.concatenate([np.asarray(one.values, np.float32) for one in vectors])
    return csr_array((values, np.concatenate([one.indices for one in vectors]), ends), shape=(len(vectors), width))


def ranking(scores: NDArray[np.float32], number: int, above: float = -np.inf) -> list[list[int]]:
    """The best documents of each query, best first, of those that score more than this."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :number]
    return [[int(one) for one in best if row[one] > above] for row, best in zip(scores, order, strict=True)]


def merged(rankings: Sequence[list[int]], number: int) -> list[int]:
    """The best documents by reciprocal rank fusion of each stage's best, as Qdrant merges them."""
    scores: dict[int, float] = {}
    for best in rankings:
        for rank, document in enumerate(best[:number], 1):
            scores[document] = scores.get(document, 0.0) + 1 / (RRF_K - 1 + rank)
    return sorted(scores, key=lambda document: -scores[document])[:number]


def recalls(stage: list[list[int]], words: list[list[int]], exact: list[list[int]]) -> dict[str, dict[str, float]]:
    """Recall@10 by the number of candidates: of a stage, and of its hybrid with BM25."""
    found: dict[str, dict[str, float]] = {"alone": {}, "hybrid": {}}
    for number in NUMBERS:
        alone = [best[:number] for best in stage]
        both = [merged(pair, number) for pair in zip(stage, words, strict=True)]
        for name, candidates in (("alone", alone), ("hybrid", both)):
            found[name][str(number)] = statistics.fmean(
                len(set(one) & set(best)) / len(best) for one, best in zip(candidates, exact, strict=True)
            )
    return found


def measure(data: Collection, kinds: Sequence[str], training: Training) -> Iterator[dict[str, Any]]:
    """A row for ``pooled`` and for LEMUR at each size, for each kind of tokens it is trained on."""
    lengths = [len(one) for one in data.query_vectors]
    asked = torch.from_numpy(np.concatenate(data.query_vectors))
    exact = ranking(sums(best_similarities(asked, data.vectors), lengths).numpy(), K)
    words = ranking(bm25_scores(data), max(NUMBERS), above=0.0)
    named = {"collection": data.name, "documents": len(data.texts), "queries": len(data.queries)}
    chance = np.random.default_rng(0)
    sample = chance.permutation(len(data.vectors))
    new = [np.asarray(data.vectors[number]) for number in np.resize(sample, NEW)]

    pooled = PooledStage()
    clock = time.perf_counter()
    for one in new:
        pooled.document("", one.astype(np.float32))
    seconds = time.perf_counter() - clock
    own = np.stack([pooled.document("", np.asarray(one, np.float32)) for one in data.vectors])
    stage = ranking(np.stack([pooled.query("", one) for one in data.query_vectors]) @ own.T, max(NUMBERS))
    yield {
        **named,
        "stage": "pooled",
        "size": DIM,
        "bytes a document": 4 * DIM,
        "seconds for new documents": seconds,
        "recall@10": recalls(stage, words, exact),
    }
    for kind in kinds:
        clock = time.perf_counter()
        tokens = training_tokens(data, kind, training.tokens)
        reading = time.perf_counter() - clock
        clock = time.perf_counter()
        targets = best_similarities(tokens, [data.vectors[number] for number in sample[: training.documents]])
        targets = (targets - targets.mean()) / targets.std()
        preparing = time.perf_counter() - clock
        similarities = best_similarities(tokens[: training.fitted], data.vectors)
        clock = time.perf_counter()
        ours = best_similarities(tokens[: training.fitted], new)
        comparing = time.perf_counter() - clock
        for size in SIZES[:2] if data.name == LARGE else SIZES:
            clock = time.perf_counter()
            lemur = Lemur(size, tokens, targets, training)
            fitting = time.perf_counter() - clock
            clock = time.perf_counter()
            lemur.documents(ours)
            solving = time.perf_counter() - clock
            queries = sums(lemur.outputs(asked), lengths)
            stage = ranking((queries @ lemur.documents(similarities).T).numpy(), max(NUMBERS))
            yield {
                **named,
                "stage": "lemur",
                "tokens": kind,
                "trained tokens": len(tokens),
                "size": size,
                "bytes a document": 4 * size,
                "bytes a collection": lemur.stored_bytes,
                "seconds of tokens": reading,
                "seconds of training": preparing + fitting,
                "seconds for new documents": comparing + solving,
                "recall@10": recalls(stage, words, exact),
            }


def measured(name: str, kinds: Sequence[str], options: argparse.Namespace, training: Training) -> list[dict[str, Any]]:
    """The rows of a collection; what was measured before is read from build/lemur."""
    KEPT.mkdir(parents=True, exist_ok=True)
    data = None
    rows: list[dict[str, Any]] = []
    for kind in kinds:
        file = KEPT / f"{name}.{kind.replace(' ', '-')}.json"
        if not file.exists():
            data = data or read(name, options.passages, options.queries)
            say(f"{name}: {len(data.texts):,} documents, {len(data.queries)} queries; trained on {kind}")
            found = list(measure(data, [kind], training))
            for row in found:
                say(json.dumps(row))
            file.write_text(json.dumps(found, indent=1))
        found = json.loads(file.read_text())
        rows += found[bool(rows) :]  # pooled comes once
    return rows


def markdown(report: dict[str, Any]) -> str:
    """Recall of each stage alone and in the hybrid, and what LEMUR costs."""
    head = ["collection", "stage", "trained on", "numbers a document", *(f"{number}" for number in NUMBERS)]
    lines = [[*head, *(f"hybrid, {number}" for number in NUMBERS)], ["---"] * 3 + ["--:"] * (1 + 2 * len(NUMBERS))]
    costs = [
        ["collection", "trained on", "numbers a document", "training, s", "1,000 documents, s", "kept, MB"],
        ["---", "---", *["--:"] * 4],
    ]
    last = ""
    for row in report["rows"]:
        name = "" if row["collection"] == last else f"{row['collection']}, {row['documents']:,}"
        last = row["collection"]
        figures = [f"{row['recall@10'][kind][str(number)]:.3f}" for kind in ("alone", "hybrid") for number in NUMBERS]
        lines.append([name, row["stage"], row.get("tokens", ""), str(row["size"]), *figures])
        costs.append(
            [
                name,
                row.get("tokens", "(pooled)"),
                str(row["size"]),
                f"{row['seconds of training']:.0f}" if "tokens" in row else "0",
                f"{row['seconds for new documents']:.2f}",
                f"{row.get('bytes a collection', 0) / 1e6:.1f}",
            ]
        )
    return "\n\n".join("\n".join(f"| {' | '.join(cells)} |" for cells in table) for table in (lines, costs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collections", nargs="+", default=list(COLLECTIONS))
    parser.add_argument("--tokens", nargs="+", choices=TOKENS, default=["documents"])
    parser.add_argument("--passages", type=int, default=12_500, help="of the collection 'large'")
    parser.add_argument("--queries", type=int, default=300, help="of each collection, at most")
    options = parser.parse_args()
    training = Training()
    report = {
        "command": shlex.join(["python", "benchmarks/lemur.py", *sys.argv[1:]]),
        "training": asdict(training),
        "rows": [row for name in options.collections for row in measured(name, options.tokens, options, training)],
        "versions": {name: version(name) for name in PACKAGES},
        "machine": machine(),
    }
    OUTPUT.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(markdown(report))
    say(f"Written to {OUTPUT}")


if __name__ == "__main__":
    main()
