"""MUVERA's fixed dimensional encodings, against the paper's definition in plain Python."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from collection_samples import maxsim
from numpy.typing import NDArray

from jcv2_plugin.engines.muvera import Muvera
from jcv2_plugin.errors import InvalidOptionError

DIM = 24

Matrix = NDArray[np.float32]


def tokens(number: int, *, seed: int, dim: int = DIM) -> Matrix:
    """Random token vectors of length 1."""
    drawn = np.random.default_rng(seed).standard_normal((number, dim)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def by_definition(muvera: Muvera, vectors: Matrix, *, is_query: bool) -> list[float]:
    """Section 2 of arXiv 2405.19504, word by word: a part for each token by SimHash, a sum or a mean for each part."""
    planes, projections = muvera._random
    encoding: list[float] = []
    for repetition in range(muvera.repetitions):

        def part(token: Matrix, repetition: int = repetition) -> tuple[int, ...]:
            return tuple(
                int(sum(float(a) * float(b) for a, b in zip(token, planes[:, repetition, plane], strict=True)) > 0)
                for plane in range(muvera.planes)
            )

        def projected(token: Matrix, repetition: int = repetition) -> list[float]:
            return [
                sum(float(a) * float(b) for a, b in zip(token, projections[:, repetition, column], strict=True))
                for column in range(muvera.projected)
            ]

        for number in range(2**muvera.planes):
            wanted = tuple(number >> plane & 1 for plane in range(muvera.planes))
            inside = [projected(token) for token in vectors if part(token) == wanted]
            if not inside and not is_query:
                differing = [sum(a != b for a, b in zip(part(token), wanted, strict=True)) for token in vectors]
                inside = [projected(vectors[differing.index(min(differing))])]
            sums = [sum(column) for column in zip(*inside, strict=True)] if inside else [0.0] * muvera.projected
            encoding += sums if is_query else [one / len(inside) for one in sums]
    return encoding


@pytest.mark.parametrize(
    "settings",
    [
        {"planes": 3, "projected": 8, "repetitions": 4},
        {"planes": 1, "projected": DIM, "repetitions": 1},
        {"planes": 5, "projected": 1, "repetitions": 3, "seed": 11},
    ],
)
@pytest.mark.parametrize("number", [1, 2, 17])
def test_it_is_what_the_paper_defines(settings: dict[str, int], number: int) -> None:
    muvera = Muvera(dim=DIM, **settings)
    vectors = tokens(number, seed=number)
    np.testing.assert_allclose(muvera.query(vectors), by_definition(muvera, vectors, is_query=True), atol=1e-5)
    np.testing.assert_allclose(muvera.document(vectors), by_definition(muvera, vectors, is_query=False), atol=1e-5)
    assert muvera.query(vectors).dtype == muvera.document(vectors).dtype == np.float32
    assert muvera.query(vectors).shape == muvera.document(vectors).shape == (muvera.size,)


def test_projections_are_random_signs_and_planes_are_normal() -> None:
    planes, projections = Muvera(dim=64, repetitions=40)._random
    assert set(np.unique(projections * math.sqrt(16)).round(5)) == {-1.0, 1.0}
    assert abs(float(projections.mean())) < 0.01
    assert abs(float(planes.mean())) < 0.03
    assert float(planes.std()) == pytest.approx(1, abs=0.03)


def test_a_document_of_one_token_fills_every_part_with_it() -> None:
    muvera = Muvera(dim=DIM, planes=3, projected=6, repetitions=5)
    encoding = muvera.document(tokens(1, seed=3)).reshape(5, 8, 6)
    assert np.ptp(encoding, axis=1).max() == 0
    query = muvera.query(tokens(1, seed=3)).reshape(5, 8, 6)
    assert (np.abs(query).sum(axis=2) > 0).sum(axis=1).tolist() == [1] * 5


def test_the_order_of_tokens_does_not_matter() -> None:
    muvera = Muvera(dim=DIM, planes=2)  # few parts, so that all have a token and no nearest one is chosen
    vectors = tokens(60, seed=1)
    np.testing.assert_allclose(muvera.document(vectors), muvera.document(vectors[::-1]), atol=1e-6)
    np.testing.assert_allclose(muvera.query(vectors), muvera.query(vectors[::-1]), atol=1e-5)


def test_equal_settings_encode_equally_in_another_process_too() -> None:
    script = (
        "import numpy as np; from jcv2_plugin.engines.muvera import Muvera;"
        f"m = Muvera(dim={DIM}); v = np.linspace(-1, 1, 5 * {DIM}, dtype=np.float32).reshape(5, -1);"
        "print(m.document(v).astype(np.float64).tobytes().hex(), m.query(v).astype(np.float64).tobytes().hex())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    vectors = np.linspace(-1, 1, 5 * DIM, dtype=np.float32).reshape(5, -1)
    for encoding, words in zip(("document", "query"), done.stdout.split(), strict=True):
        theirs = np.frombuffer(bytes.fromhex(words))
        np.testing.assert_array_equal(getattr(Muvera(dim=DIM), encoding)(vectors), theirs)
    assert not np.allclose(Muvera(dim=DIM, seed=1).query(vectors), Muvera(dim=DIM).query(vectors))


def test_stored_encodings_stay_comparable() -> None:
    """Collections on disk hold encodings, so that what is drawn from a seed must not change with a version."""
    planes, projections = Muvera(dim=4, planes=2, projected=2, repetitions=2)._random
    np.testing.assert_allclose(planes[0].reshape(-1), [1.764052, 0.400157, 0.978738, 2.240893], atol=1e-6)
    np.testing.assert_allclose((projections[:, 0] * math.sqrt(2)).reshape(-1), [-1, 1, 1, 1, -1, 1, 1, 1], atol=1e-6)


def test_products_of_encodings_follow_maxsim() -> None:
    """Far better than chance: documents share some tokens with the query, more or fewer."""
    dim, rng = 64, np.random.default_rng(7)
    muvera = Muvera(dim=dim)
    query = tokens(12, seed=100, dim=dim)
    documents = []
    for number in range(200):
        vectors = tokens(40, seed=200 + number, dim=dim)
        shared = rng.permutation(12)[: int(rng.integers(0, 12))]
        near = query[shared] + 0.08 * rng.standard_normal((len(shared), dim)).astype(np.float32)
        vectors[: len(shared)] = near / np.linalg.norm(near, axis=1, keepdims=True)
        documents.append(vectors)
    exact = np.array([maxsim(query, one) for one in documents])
    guessed = np.array([float(muvera.query(query) @ muvera.document(one)) for one in documents]) / muvera.repetitions
    assert np.corrcoef(exact, guessed)[0, 1] > 0.85
    assert len(set(np.argsort(-exact)[:20]) & set(np.argsort(-guessed)[:40])) >= 16  # by chance: 4
    shuffled = rng.permutation(guessed)
    assert abs(np.corrcoef(exact, shuffled)[0, 1]) < 0.3  # what chance looks like here


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"planes": 0}, "planes"),
        ({"planes": 13}, "planes"),
        ({"planes": "3"}, "planes"),
        ({"planes": True}, "planes"),
        ({"projected": 0}, "projected"),
        ({"projected": DIM + 1}, "projected"),
        ({"repetitions": 0}, "repetitions"),
        ({"repetitions": 1001}, "repetitions"),
        ({"repetitions": 2.0}, "repetitions"),
        ({"seed": -1}, "seed"),
        ({"seed": None}, "seed"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], name: str) -> None:
    with pytest.raises(InvalidOptionError, match=f"muvera: {name} must be between"):
        Muvera(dim=DIM, **settings)


def test_more_dimensions_than_qdrant_takes() -> None:
    assert Muvera(dim=DIM, planes=12, projected=16, repetitions=1).size == 65_536
    with pytest.raises(InvalidOptionError, match="makes 131,072 dimensions, Qdrant takes at most 65,536"):
        Muvera(dim=DIM, planes=12, projected=16, repetitions=2)
