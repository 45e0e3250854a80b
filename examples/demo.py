"""`make demo`: ask this project's English documentation questions in German, Arabic and Chinese.

It indexes the prose of README.md and docs/ into an embedded Qdrant under build/demo, with the model
`mini-multilingual`, asks through LangChain and through LlamaIndex, and leaves a heat map of the first question's best
match in build/demo/heatmap.html. Both frameworks read one collection, so each passage is encoded once.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from langchain_core.documents import Document as LangChainDocument
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from jcv2_plugin import ColbertCollection, Document, Explanation, JinaColbertEncoder
from jcv2_plugin.console import quiet_libraries
from langchain_jcv2 import JinaColbertRetriever
from llama_index_jcv2 import JinaColbertIndex, ScoredNode

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "demo"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


class Question(NamedTuple):
    """A question as it is asked, and what it means."""

    language: str
    text: str
    meaning: str


QUESTIONS = (
    Question(
        "German",
        "Darf ich die offiziellen Gewichte in einem kommerziellen Produkt verwenden?",
        "May I use the official weights in a commercial product?",
    ),
    Question("Arabic", "كم من الذاكرة تحتاج كل عملية؟", "How much memory does each process need?"),
    Question("Chinese", "为什么一个问题能找到其他语言的文本？", "Why can a question find texts in other languages?"),
)

console = Console(highlight=False)


def prose(markdown: str) -> str:
    """A page without its code, commands and tables."""
    markdown = re.sub(r"^```.*?^```$|<!-- table.*?<!-- end -->", "", markdown, flags=re.DOTALL | re.MULTILINE)
    return "\n".join(line for line in markdown.splitlines() if not line.startswith(("|", "    ", "<!--")))


def passages() -> Iterator[Document]:
    """The paragraphs and list entries of all pages, each with its heading."""
    for page in PAGES:
        source, heading = page.relative_to(ROOT).as_posix(), ""
        for block in re.split(r"\n\s*\n|\n(?=- )", prose(page.read_text(encoding="utf-8"))):
            text = " ".join(block.split())
            if text.startswith("#"):
                heading = text.lstrip("# ")
            elif text:
                yield Document(f"{heading}: {text.removeprefix('- ')}", metadata={"source": source})


def show_question(question: Question) -> None:
    console.print(Text.assemble(f"{question.language}: ", (question.text, "bold"), f"\n  ({question.meaning})"))


def show_passage(header: str, text: str) -> None:
    console.print(Text.assemble("  ", (header, "green")))
    console.print(Text(text))


def ask_langchain(collection: ColbertCollection) -> None:
    """A chain as anybody would write it; a stand-in for a language model quotes the best passage."""
    retriever = JinaColbertRetriever.from_collection(collection, k=1, add_score=True)

    def join(documents: list[LangChainDocument]) -> str:
        return "\n\n".join(f"[{doc.metadata['source']}, relevance {doc.metadata['relevance_score']:.2f}]\n"
                           f"{doc.page_content}" for doc in documents)  # fmt: skip

    prompt = ChatPromptTemplate.from_template("{context}\n---\n{question}")
    quote = RunnableLambda(lambda value: value.to_string().split("\n---\n")[0].removeprefix("Human: "))
    chain = {"context": retriever | join, "question": RunnablePassthrough()} | prompt | quote | StrOutputParser()
    for question in QUESTIONS:
        show_question(question)
        header, _, text = chain.invoke(question.text).removeprefix("[").partition("]\n")
        show_passage(header, text)
        console.print()


def ask_llama_index(collection: ColbertCollection) -> None:
    """The same in LlamaIndex, with words that matched."""
    index = JinaColbertIndex.from_collection(collection)
    retriever = index.as_retriever(similarity_top_k=1, with_explanation=True)
    for question in QUESTIONS:
        show_question(question)
        found = retriever.retrieve(question.text)[0]
        assert isinstance(found, ScoredNode)
        assert found.explanation is not None
        show_passage(f"{found.node.metadata['source']}, relevance {found.relevance:.2f}", found.node.get_content())
        console.print(f"  matched: {matched_words(found.explanation)}\n")


def matched_words(explanation: Explanation, most: int = 2) -> str:
    """The words that are most alike; of a long one, a piece that the model reads."""
    pairs: dict[str, str] = {}
    for match in sorted(explanation.matches, key=lambda match: match.similarity, reverse=True):
        asked = explanation.query[match.query.start : match.query.end]
        found = explanation.text[match.document.start : match.document.end]
        if asked.isalpha() and found.isalpha() and len(asked.encode()) > 2:  # no single syllables
            pairs.setdefault(asked, found)
    return ", ".join(f"{asked} → {found}" for asked, found in list(pairs.items())[:most])


def main() -> int:
    os.chdir(ROOT)
    quiet_libraries()
    BUILD.mkdir(parents=True, exist_ok=True)
    encoder = JinaColbertEncoder.from_pretrained("mini-multilingual", dims=128)
    folder = BUILD / "collection"
    with ColbertCollection.create(folder, encoder=encoder, dim=128, overwrite=True) as collection:
        report = collection.ingest(passages())
        console.print(f"Indexed {report.written} passages of {len(PAGES)} pages into {folder}.\n")
        console.print(Rule("LangChain"))
        ask_langchain(collection)
        console.print(Rule("LlamaIndex"))
        ask_llama_index(collection)
        first = QUESTIONS[0].text
        best = collection.search(first, k=1)[0]
        heatmap = BUILD / "heatmap.html"
        heatmap.write_text(collection.explain(first, best.id).to_html(), encoding="utf-8")
    console.print(f"Which word matched which: open {heatmap} in a browser.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
