"""Keep a LangChain vector store in step with a folder of files, by LangChain's indexing API. Runs offline."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from langchain_core.documents import Document
from langchain_core.indexing import InMemoryRecordManager, index

from jcv2_plugin import JinaColbertEncoder
from jcv2_plugin.collection.sources import PassageReader, find_files
from langchain_jcv2 import JinaColbertVectorStore

DOCS = Path(__file__).resolve().parents[2] / "docs"
QUESTION = "How is a document scored against a query?"


def passages(folder: Path, reader: PassageReader) -> Iterator[Document]:
    """Files in passages. Any of LangChain's loaders and splitters does as well."""
    for file in find_files([folder]):
        for passage in reader.read(file):
            yield Document(page_content=passage.text, metadata={"source": file.path.name})


def main() -> None:
    encoder = JinaColbertEncoder.from_pretrained("mini", dims=64)
    reader = PassageReader(encoder, chunk_tokens=200)
    with tempfile.TemporaryDirectory() as temporary:
        # Some of the pages, to be quick.
        folder = shutil.copytree(DOCS, Path(temporary) / "docs", ignore=shutil.ignore_patterns("[!ael]*"))
        store = JinaColbertVectorStore.from_texts([], encoder=encoder, dim=64, location=Path(temporary) / "index")
        records = InMemoryRecordManager(namespace="docs")  # SQLRecordManager keeps them between runs
        records.create_schema()

        def index_folder() -> None:
            found = passages(folder, reader)
            # cleanup="full": passages that are gone from the files go from the store.
            done = index(found, records, store, cleanup="full", source_id_key="source", key_encoder="sha256")
            print(f"{done['num_added']} passages added, {done['num_skipped']} known, {done['num_deleted']} removed")

        index_folder()
        (folder / "note.md").write_text("The documentation was read on a rainy day.", encoding="utf-8")
        (folder / "encoder.md").unlink()
        index_folder()  # only the note is encoded
        print(f"\n{QUESTION}")
        for document, score in store.similarity_search_with_relevance_scores(QUESTION, k=3):
            print(f"  {score:.2f}  {document.metadata['source']}: {' '.join(document.page_content.split())[:70]}...")
        store.collection.close()


if __name__ == "__main__":
    main()
