"""A multi-query chain in LangChain: a model asks in several ways, and the results are fused. Runs offline."""

from __future__ import annotations

import re

from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompt_values import PromptValue
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda

from langchain_jcv2 import JinaColbertRetriever

PASSAGES = {
    "boiler": "The boiler is serviced every October; the caretaker lets the engineer in.",
    "bicycles": "Bicycles belong in the shed behind the house, which opens with the front-door key.",
    "laundry": "The washing machines in the cellar take tokens, sold on Mondays.",
    "guests": "Guests may park in the yard for three days if their number plate is on the list.",
}
QUESTION = "Where do I leave my bike, when is the boiler serviced and what does the washing machine take?"

SPLIT = ChatPromptTemplate.from_template("Write this as questions for a search, one a line:\n{question}")


def stand_in_model(prompt: PromptValue) -> str:
    """Split at commas and "and". A real chat model goes here, which may also say the same in other words."""
    parts = re.split(r", | and ", prompt.to_string().partition("\n")[2].rstrip("?"))
    return "\n".join(f"{part[0].upper()}{part[1:]}?" for part in parts)


def fuse(results: list[list[Document]]) -> list[Document]:
    """Reciprocal rank fusion: what is far up, and found often, comes first."""
    found: dict[str, Document] = {}
    scores: dict[str, float] = {}
    for documents in results:
        for rank, document in enumerate(documents, start=1):
            found[str(document.id)] = document
            scores[str(document.id)] = scores.get(str(document.id), 0.0) + 1 / (60 + rank)
    return [found[name] for name in sorted(scores, key=lambda name: -scores[name])]


def main() -> None:
    retriever = JinaColbertRetriever.from_texts(PASSAGES.values(), ids=list(PASSAGES), encoder="mini", dim=64, k=1)
    questions = SPLIT | stand_in_model | StrOutputParser() | str.splitlines
    chain = questions | retriever.map() | RunnableLambda(fuse)

    print("Asked:")
    for line in questions.invoke({"question": QUESTION}):
        print(f"  {line}")
    print("Found:", ", ".join(str(document.id) for document in chain.invoke({"question": QUESTION})))
    print("Found by the one question:", ", ".join(str(document.id) for document in retriever.invoke(QUESTION)))


if __name__ == "__main__":
    main()
