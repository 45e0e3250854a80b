"""Keep a LlamaIndex index in step with a folder of files, also after reopening it. Runs offline."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from llama_index.core import SimpleDirectoryReader
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import Document

from llama_index_jcv2 import JinaColbertIndex

DOCS = Path(__file__).resolve().parents[2] / "docs"
QUESTION = "How is a document scored against a query?"


def read(folder: Path) -> list[Document]:
    reader = SimpleDirectoryReader(str(folder), required_exts=[".md"], recursive=True, filename_as_id=True)
    documents: list[Document] = reader.load_data()
    for document in documents:  # what is not for the model to read
        document.metadata = {"file": document.metadata["file_name"]}
        document.excluded_embed_metadata_keys = ["file"]
    return documents


def main() -> None:
    splitter = SentenceSplitter(chunk_size=200, chunk_overlap=0)
    with tempfile.TemporaryDirectory() as temporary:
        # Some of the pages, to be quick.
        folder = shutil.copytree(DOCS, Path(temporary) / "docs", ignore=shutil.ignore_patterns("[!ael]*"))
        documents = read(folder)
        index = JinaColbertIndex.from_documents(
            documents, encoder="mini", dim=64, location=Path(temporary) / "index", transformations=[splitter]
        )
        print(f"{len(documents)} documents in {index.collection.count()} passages")
        index.collection.close()

        # Later, in another process: what has changed is encoded, and nothing else.
        (folder / "note.md").write_text("The documentation was read on a rainy day.", encoding="utf-8")
        again = JinaColbertIndex.from_collection(Path(temporary) / "index")
        written = again.refresh_ref_docs(read(folder))
        print(f"{written.count(True)} document written, {written.count(False)} as they were")
        print(f"\n{QUESTION}")
        for found in again.as_retriever(similarity_top_k=3).retrieve(QUESTION):
            print(f"  {found.score:5.2f}  {found.node.metadata['file']}: {' '.join(found.text.split())[:70]}...")
        again.collection.close()


if __name__ == "__main__":
    main()
