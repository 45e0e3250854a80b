"""Answers of a server that cannot be right, and writes that it has not completed."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from collection_samples import documents, group
from loopback_qdrant import Recorded, _Answer
from server_site import REST, Site

from jcv2_plugin import ColbertCollection, JinaColbertEncoder
from jcv2_plugin.engines.retries import Retry
from jcv2_plugin.errors import CollectionError

ITEMS = documents(12)
QUERY = ITEMS[7].text
OTHER = "00000000-0000-0000-0000-000000000001"

pytestmark = pytest.mark.usefixtures("one_thread")

Change = Callable[[Any], Any]


def lie(site: Site, monkeypatch: pytest.MonkeyPatch, path: str, change: Change, times: float = float("inf")) -> None:
    """Let a function change the results of requests to such paths. It returns another result, or None."""
    original = site.loopback._handle
    left = times

    def handle(request: Recorded) -> Any:
        nonlocal left
        answer = original(request)
        if answer is not None and request.path.endswith(path) and left > 0:
            left -= 1
            changed = change(answer.body["result"])
            if changed is not None:
                answer.body["result"] = changed
        return answer

    monkeypatch.setattr(site.loopback, "_handle", handle)


def in_hits(change: Change) -> Change:
    return lambda result: change(result[0]["points"])


def of_first(**values: Any) -> Change:
    return lambda points: points[0].update(values)


def vectors(value: Any) -> Change:
    def change(points: list[Any]) -> None:
        for point in points:
            point["vector"]["colbert"] = value(point["vector"]["colbert"])

    return change


def more(points: list[Any]) -> None:
    points.extend({**points[0], "id": f"00000000-0000-0000-0000-00000000000{n}"} for n in range(3))


SEARCH = "/points/query/batch"
READ = "/points"
SCROLL = "/points/scroll"


@REST
@pytest.mark.parametrize(
    ("path", "change", "act", "message"),
    [
        (SEARCH, in_hits(of_first(payload=None)), "search", "has no id or no text"),
        (SEARCH, in_hits(of_first(payload={})), "search", "has no id or no text"),
        (SEARCH, in_hits(lambda points: points[0]["payload"].update(page_content=7)), "search", "no id or no text"),
        (
            SEARCH,
            in_hits(lambda points: points[0]["payload"].update(metadata=["x"])),
            "search",
            "metadata .* not a dict",
        ),
        (SEARCH, in_hits(of_first(payload=["x"])), "search", "Qdrant|score"),
        (SEARCH, in_hits(of_first(id=OTHER)), "search", "under another document's point"),
        (SEARCH, in_hits(of_first(id=17)), "search", "under another document's point"),
        (SEARCH, in_hits(of_first(score=float("nan"))), "search", "Qdrant|score"),
        (SEARCH, in_hits(of_first(score=float("inf"))), "search", "Qdrant|score"),
        (SEARCH, in_hits(of_first(score="high")), "search", "Qdrant|score"),
        (SEARCH, in_hits(more), "search", "6 hits were sent, at most 3 were asked for"),
        (SEARCH, in_hits(lambda points: points.__setitem__(slice(None), points[:1] * 3)), "search", "occurs twice"),
        (SEARCH, in_hits(lambda points: points.reverse()), "search", "not in the order of their scores"),
        (SEARCH, lambda result: [], "search", "0 of 1 searches were answered"),
        (SEARCH, lambda result: result * 2, "search", "2 of 1 searches were answered"),
        (SEARCH, lambda result: result[0], "search", "Qdrant|score"),
        (READ, of_first(id=OTHER), "get", "was not asked for"),
        (READ, lambda points: points * 3, "get", "occurs twice"),
        (READ, of_first(payload={"_id": "d7"}), "get", "has no id or no text"),
        (READ, vectors(lambda rows: [row[:9] for row in rows]), "mmr", r"shape \(\d+, 9\) in a collection of dim=32"),
        (READ, vectors(lambda rows: rows[0]), "mmr", r"shape \(32,\)"),
        (READ, vectors(lambda rows: [rows[0], rows[1][:5]]), "mmr", "are unreadable"),
        (SCROLL, lambda page: vectors(lambda rows: [row[:9] for row in rows])(page["points"]), "verify", "9"),
        (SCROLL, lambda page: vectors(lambda rows: [rows[0], rows[1][:5]])(page["points"]), "verify", "unreadable"),
        (SCROLL, lambda page: page.update(next_page_offset=OTHER), "ids", "the next begins at"),
        (SCROLL, lambda page: page.update(points=[], next_page_offset=OTHER), "ids", "0 points, and the next"),
        (SCROLL, lambda page: page.update(points=page["points"] * 2), "ids", "occurs twice"),
        (SCROLL, lambda page: page["points"][0].update(payload={}), "ids", "has no id"),
        (SCROLL, lambda page: page["points"][0]["payload"].update(metadata=["x"]), "scroll", "metadata .* not a dict"),
        (SCROLL, lambda page: page.update(points={"a": 1}), "scroll", "no Qdrant server"),
        ("/points/count", lambda result: {"count": -1}, "count", "-1 points"),
        ("/points/count", lambda result: [1], "count", "no Qdrant server"),
    ],
)
def test_an_answer_that_cannot_be_right_names_the_server(
    loopback: Site,
    stored: ColbertCollection,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    change: Change,
    act: str,
    message: str,
) -> None:
    acts: dict[str, Callable[[], Any]] = {
        "search": lambda: stored.search(QUERY, k=3),
        "mmr": lambda: stored.search_mmr(QUERY, k=2),
        "get": lambda: stored.get(["d7"]),
        "verify": lambda: stored.verify(sample=2),
        "ids": lambda: list(stored.ids()),
        "scroll": lambda: list(stored.scroll()),
        "count": stored.count,
    }
    acts[act]()
    lie(loopback, monkeypatch, path, change)
    with pytest.raises(CollectionError, match=message) as caught:
        acts[act]()
    assert loopback.url in str(caught.value)


WRITES = [
    (lambda one: one.add(["Another text."]), READ),
    (lambda one: one.delete(["d1"]), "/points/delete"),
    (lambda one: one.delete(filter=group("g2")), "/points/delete"),
    (lambda one: one.create_payload_index("metadata.n", "integer"), "/index"),
]


@REST
@pytest.mark.parametrize("status", ["acknowledged", "wait_timeout"])
@pytest.mark.parametrize(("write", "path"), WRITES)
def test_a_write_that_is_not_completed_is_repeated_and_then_an_error(
    loopback: Site,
    stored: ColbertCollection,
    monkeypatch: pytest.MonkeyPatch,
    waits: list[float],
    write: Callable[[ColbertCollection], Any],
    path: str,
    status: str,
) -> None:
    def unfinished(result: Any) -> None:
        if isinstance(result, dict) and "status" in result:
            result["status"] = status

    lie(loopback, monkeypatch, path, unfinished, times=3)
    write(stored)
    assert len(waits) >= 1
    waits.clear()
    lie(loopback, monkeypatch, path, unfinished)
    with pytest.raises(CollectionError, match=f"did not finish in time .a write is {status}, not completed"):
        write(stored)
    assert len(waits) == Retry.attempts - 1


def test_an_unfinished_write_over_grpc(
    loopback: Site, stored: ColbertCollection, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    """Over either protocol: here the request is not waited for, which the server answers with 'acknowledged'."""
    client: Any = stored.engine.client  # type: ignore[attr-defined]
    upsert = client.upsert
    monkeypatch.setattr(client, "upsert", lambda *args, wait, **more: upsert(*args, wait=False, **more))
    with pytest.raises(CollectionError, match="a write is acknowledged, not completed"):
        stored.add(["Another text."], ids=["new"])
    assert len(waits) == Retry.attempts - 1


@REST
def test_an_alias_that_was_not_moved_is_an_error(
    loopback: Site, mini: JinaColbertEncoder, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    lie(loopback, monkeypatch, "/collections/aliases", lambda result: False)
    with pytest.raises(CollectionError, match="a write is False, not completed"):
        loopback.create(mini)


@REST
@pytest.mark.parametrize("content", ["[" * 200_000, '{"status": ' * 100_000, '{"status": {"error": []}}', ""])
@pytest.mark.parametrize("status", [200, 400, 429])
def test_bodies_that_are_no_answers(
    loopback: Site,
    stored: ColbertCollection,
    monkeypatch: pytest.MonkeyPatch,
    waits: list[float],
    content: str,
    status: int,
) -> None:
    monkeypatch.setattr(loopback.loopback, "_handle", lambda request: _Answer(status, content))
    with pytest.raises(CollectionError, match=re.escape(loopback.url)):
        stored.count()


@REST
@pytest.mark.parametrize("wait", ["-5", "9" * 400, "9" * 5000, "nan", "inf", "1e400", "\u00b2", "soon", "0x10"])
@pytest.mark.parametrize("status", [429, 503])
def test_a_wait_that_is_none(
    loopback: Site, stored: ColbertCollection, waits: list[float], wait: str, status: int
) -> None:
    loopback.loopback.fail(times=1, status=status, retry_after=wait)
    assert stored.count() == len(ITEMS)
    assert 0.5 <= waits[0] <= 1.0
