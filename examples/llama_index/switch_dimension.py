"""Change a LlamaIndex index's collection from 128 to 64 dimensions while it is in use. Runs offline."""

from __future__ import annotations

import tempfile
from pathlib import Path

from llama_index.core import Document

from llama_index_jcv2 import JinaColbertIndex

RECIPES = {
    "rice": "Rinse the rice until the water is clear, then cook it covered for twelve minutes.",
    "bread": "Let the dough rise twice, and bake the loaf on a hot stone.",
    "soup": "Fry onions slowly, add stock, and let the soup simmer under a lid.",
    "eggs": "Boil eggs for six minutes and put them into cold water.",
}
QUESTION = "How long does rice take?"


def show(index: JinaColbertIndex) -> None:
    best = index.as_retriever(similarity_top_k=1).retrieve(QUESTION)[0]
    print(f"{index.collection.dim} numbers a token: {best.node.ref_doc_id}, score {best.score:.2f}")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        location = Path(folder) / "recipes"
        documents = [Document(id_=name, text=text) for name, text in RECIPES.items()]
        index = JinaColbertIndex.from_documents(documents, encoder="mini", dim=128, location=location)
        show(index)

        # Each dimension has a head of its own, so vectors cannot be cut short: the texts are encoded anew, beside the
        # old vectors, which are searched meanwhile. Stopped halfway, the collection is as it was.
        report = index.collection.migrate(dim=64)
        print(f"Migrated {report.documents} nodes.")
        show(index)  # the same index goes on
        index.insert(Document(id_="tea", text="Let tea draw for three minutes."))
        index.collection.close()

        # Whoever opens the collection finds the new dimension in it.
        reopened = JinaColbertIndex.from_collection(location)
        show(reopened)
        print("Recipes:", ", ".join(sorted(reopened.ref_doc_info)))
        reopened.collection.close()


if __name__ == "__main__":
    main()
