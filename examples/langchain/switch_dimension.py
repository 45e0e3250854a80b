"""Change a LangChain retriever's collection from 128 to 64 dimensions while it is in use. Runs offline."""

from __future__ import annotations

import tempfile
from pathlib import Path

from langchain_jcv2 import JinaColbertRetriever

RECIPES = {
    "rice": "Rinse the rice until the water is clear, then cook it covered for twelve minutes.",
    "bread": "Let the dough rise twice, and bake the loaf on a hot stone.",
    "soup": "Fry onions slowly, add stock, and let the soup simmer under a lid.",
    "eggs": "Boil eggs for six minutes and put them into cold water.",
}
QUESTION = "How long does rice take?"


def show(retriever: JinaColbertRetriever) -> None:
    best = retriever.invoke(QUESTION)[0]
    numbers = retriever.collection.dim
    print(f"{numbers} numbers a token: {best.id}, relevance {best.metadata['relevance_score']:.2f}")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        retriever = JinaColbertRetriever.from_texts(
            RECIPES.values(),
            ids=list(RECIPES),
            encoder="mini",
            dim=128,
            location=Path(folder) / "recipes",
            k=1,
            add_score=True,
        )
        show(retriever)

        # Each dimension has a head of its own, so vectors cannot be cut short: the texts are encoded anew, beside the
        # old vectors, which are searched meanwhile. Stopped halfway, the collection is as it was.
        report = retriever.collection.migrate(dim=64)
        print(f"Migrated {report.documents} recipes.")
        show(retriever)  # the same retriever goes on
        retriever.collection.close()

        # Whoever opens the collection finds the new dimension in it.
        reopened = JinaColbertRetriever.from_collection(Path(folder) / "recipes", k=1, add_score=True)
        show(reopened)
        reopened.collection.close()


if __name__ == "__main__":
    main()
