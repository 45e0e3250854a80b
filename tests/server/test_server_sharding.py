"""Custom sharding: a tenant or a language per shard, named by a shard key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from collection_samples import contents, documents, expected_contents
from qdrant_client import models
from server_site import Site

from jcv2_plugin import ColbertCollection, Document, JinaColbertEncoder
from jcv2_plugin.errors import CollectionError, InvalidOptionError

ANNE = [Document("Anne keeps her red boat near the harbour.", "boat", {"n": 1}), *documents(3)]
BERT = [Document("Bert sold his boat to a painter.", "boat", {"n": 2}), *documents(4, start=10)]
CUSTOM = {"sharding_method": "custom"}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def tenants(loopback: Site, mini: JinaColbertEncoder) -> tuple[ColbertCollection, ColbertCollection]:
    """One collection, opened for two tenants, who both have a document named boat."""
    anne = loopback.create(mini, shard_key="anne", first_stage="pooled", collection_options=CUSTOM)
    anne.add(ANNE)
    loopback.client.create_shard_key(loopback.name, "bert")
    bert = loopback.open(encoder=mini, shard_key="bert")
    bert.add(BERT)
    return anne, bert


def keys(site: Site) -> list[Any]:
    """The shard keys there are."""
    return [one.key for one in site.client.list_shard_keys(site.name).shard_keys or []]


class TestTenants:
    def test_each_sees_its_own(self, loopback: Site, tenants: tuple[ColbertCollection, ColbertCollection]) -> None:
        assert keys(loopback) == ["anne", "bert"]
        for tenant, items, text in zip(tenants, (ANNE, BERT), ("Anne keeps", "Bert sold"), strict=True):
            assert contents(tenant) == expected_contents(items)
            assert (tenant.count(), len(list(tenant.ids()))) == (len(items), len(items))
            for exact in (True, False):
                hits = tenant.search("whose boat is it?", k=20, exact=exact)
                assert {hit.id for hit in hits} == {str(one.id) for one in items}
                assert next(hit.text for hit in hits if hit.id == "boat").startswith(text)
            assert tenant.get(["boat"])[0].text.startswith(text)
            assert text.split()[0] in tenant.explain("a boat", "boat").text
            assert tenant.verify(sample=9).problems == []
        assert loopback.client.count(loopback.name).count == len(ANNE) + len(BERT)

    def test_each_writes_to_its_own(self, loopback: Site, tenants: tuple[ColbertCollection, ColbertCollection]) -> None:
        anne, bert = tenants
        anne.add([Document("Anne has no boat any more.", "boat")])
        anne.delete(["d0", "d10"])
        anne.delete(filter=models.Filter(must=[models.FieldCondition(key="metadata.n", range=models.Range(gte=2))]))
        anne.ingest(documents(3, start=20))
        assert sorted(anne.ids()) == ["boat", "d1", "d20", "d21", "d22"]
        assert anne.get(["boat"])[0].text == "Anne has no boat any more."
        assert contents(bert) == expected_contents(BERT)
        assert anne.ingest(documents(3, start=20)).unchanged == 3

    def test_without_a_key_all_are_searched(
        self, loopback: Site, mini: JinaColbertEncoder, tenants: tuple[ColbertCollection, ColbertCollection]
    ) -> None:
        everything = loopback.open(encoder=mini)
        hits = everything.search("whose boat is it?", k=20, exact=True)
        assert len(hits) == len(ANNE) + len(BERT) == everything.count()
        assert {hit.text for hit in hits} == {one.text for one in [*ANNE, *BERT]}
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)

    def test_without_a_key_nothing_is_written(
        self, loopback: Site, mini: JinaColbertEncoder, tenants: tuple[ColbertCollection, ColbertCollection]
    ) -> None:
        everything = loopback.open(encoder=mini)
        for act in (
            lambda: everything.add(["new"]),
            lambda: everything.ingest(["new"]),
            lambda: everything.delete(["boat"]),
            lambda: everything.delete(filter=models.Filter()),
        ):
            with pytest.raises(InvalidOptionError, match=r"Shard key not specified.*Give one of its shard keys"):
                act()
        assert everything.count() == len(ANNE) + len(BERT)

    def test_a_key_that_is_not_there_has_nothing_to_read_and_is_made_by_the_first_write(
        self, loopback: Site, mini: JinaColbertEncoder, tenants: tuple[ColbertCollection, ColbertCollection]
    ) -> None:
        nobody = loopback.open(encoder=mini, shard_key="nobody")
        acts: list[Callable[[], Any]] = [
            lambda: nobody.search("a boat"),
            nobody.count,
            lambda: nobody.get(["boat"]),
            lambda: list(nobody.ids()),
            lambda: nobody.delete(["boat"]),
        ]
        for act in acts:
            wanted = r"Shard key .*nobody.* not found.*client.create_shard_key\(name, key\)"
            with pytest.raises(InvalidOptionError, match=wanted):
                act()
        assert "nobody" not in keys(loopback)
        assert nobody.add(["new"], ids=["new"]) == ["new"]
        assert nobody.count() == 1
        assert loopback.open(encoder=mini, shard_key="another").ingest(documents(2)).written == 2
        assert keys(loopback) == ["anne", "bert", "nobody", "another"]

    def test_a_snapshot_is_of_one_of_them(
        self, loopback: Site, tenants: tuple[ColbertCollection, ColbertCollection], tmp_path: Path
    ) -> None:
        _, bert = tenants
        assert bert.snapshot(tmp_path / "bert.snapshot").documents == len(BERT)
        restored = ColbertCollection.restore(
            tmp_path / "bert.snapshot",
            loopback.url,
            name="restored",
            shard_key=7,
            collection_options=CUSTOM,
            client_options=loopback.client_options,
        )
        with restored:
            assert contents(restored) == contents(bert)
        assert [one.key for one in loopback.client.list_shard_keys("restored").shard_keys or []] == [7]

    def test_a_migration_does_not_lose_the_others(
        self, loopback: Site, mini: JinaColbertEncoder, tenants: tuple[ColbertCollection, ColbertCollection]
    ) -> None:
        anne, bert = tenants
        for one in (anne, loopback.open(encoder=mini)):
            with pytest.raises((CollectionError, InvalidOptionError), match="shard"):
                one.migrate(storage="turbo8")
        assert contents(anne) == expected_contents(ANNE)
        assert contents(bert) == expected_contents(BERT)
        assert keys(loopback) == ["anne", "bert"]
        # As docs/server.md says:
        loopback.create(mini, name="new", dim=64, shard_key="anne", collection_options=CUSTOM)
        loopback.client.create_shard_key("new", "bert")
        for key, old in (("anne", anne), ("bert", bert)):
            new = loopback.open(encoder=mini, name="new", shard_key=key)
            new.ingest(one.as_document() for one in old.scroll())
            assert contents(new) == contents(old)


class TestKeys:
    def test_the_first_is_made_with_the_collection(self, loopback: Site, mini: JinaColbertEncoder) -> None:
        for number, key in enumerate(("de", 7)):
            collection = loopback.create(mini, shard_key=key, collection_options=CUSTOM, overwrite=number > 0)
            assert keys(loopback) == [key]
            collection.add(documents(2))
            assert collection.count() == 2
            params = loopback.client.get_collection(loopback.name).config.params
            assert params.sharding_method == models.ShardingMethod.CUSTOM

    def test_the_method_may_be_the_clients_own(self, loopback: Site, mini: JinaColbertEncoder) -> None:
        options = {"sharding_method": models.ShardingMethod.CUSTOM, "shard_number": 2}
        loopback.create(mini, shard_key="de", collection_options=options).add(documents(2))
        assert loopback.client.get_collection(loopback.name).config.params.shard_number == 2

    @pytest.mark.parametrize("options", [{}, {"sharding_method": models.ShardingMethod.AUTO}])
    def test_a_collection_without_shards_by_key_takes_none(
        self, loopback: Site, mini: JinaColbertEncoder, options: dict[str, Any]
    ) -> None:
        loopback.create(mini).add(documents(2))
        with pytest.raises(InvalidOptionError, match=r"Leave out the shard key, or create the collection with one"):
            loopback.create(mini, shard_key="de", collection_options=options, overwrite=True)
        assert loopback.open().count() == 2, "what was there is left alone"
        assert loopback.names() == [f"{loopback.name}.1"]

    @pytest.mark.parametrize("options", [{"sharding_method": "by moon"}, {"shard_number": "many"}])
    def test_options_that_cannot_be(self, loopback: Site, mini: JinaColbertEncoder, options: dict[str, Any]) -> None:
        with pytest.raises(InvalidOptionError, match=r"collection_options=.*are no good"):
            loopback.create(mini, shard_key="de", collection_options=options)
        assert loopback.names() == []

    def test_a_folder_has_none(self, mini: JinaColbertEncoder, tmp_path: Path) -> None:
        with pytest.raises(InvalidOptionError, match="are for Qdrant servers"):
            ColbertCollection.create(tmp_path / "c", encoder=mini, dim=32, shard_key="de")


@pytest.fixture
def languages(loopback: Site, mini: JinaColbertEncoder) -> ColbertCollection:
    """A shard for each language, opened for all of them."""
    loopback.create(mini, shard_key="en", collection_options=CUSTOM).add(["The boat is red."], ids=["1"])
    loopback.client.create_shard_key(loopback.name, "de")
    loopback.open(encoder=mini, shard_key="de").add(["Das Boot ist rot."], ids=["1"])
    opened: ColbertCollection = loopback.open(encoder=mini)
    return opened


def test_an_id_may_be_in_several_shards(languages: ColbertCollection) -> None:
    """Reads over all shards show each of them."""
    assert languages.count() == 2
    assert sorted(one.text for one in languages.scroll()) == ["Das Boot ist rot.", "The boat is red."]
    assert sorted(hit.text for hit in languages.search("boat")) == ["Das Boot ist rot.", "The boat is red."]
