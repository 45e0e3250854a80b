"""`make demo`: ask this project's own documentation three questions, through LangChain and through LlamaIndex.

It indexes README.md and docs/ into an embedded Qdrant under build/demo, with the offline model `mini` at 64
dimensions, and leaves a heat map of the first question's best match in build/demo/heatmap.html.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from llama_index.core import Document as LlamaDocument
from llama_index.core.node_parser import SentenceSplitter
from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from jcv2_plugin import ColbertCollection, JinaColbertEncoder
from jcv2_plugin.cli.console import quiet_libraries
from jcv2_plugin.sources import PassageReader, find_files
from langchain_jcv2 import JinaColbertRetriever
from llama_index_jcv2 import JinaColbertIndex

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "demo"
QUESTIONS = (
    "How is a document scored against a query?",
    "May I use the official weights in a commercial product?",
    "What happens to documents longer than the model's window?",
)

console = Console(highlight=False)


def first_lines(text: str, most: int = 420) -> Text:
    text = " ".join(text.split())
    return Text(text if len(text) <= most else text[: most - 1] + "…")


def index_documentation(encoder: JinaColbertEncoder) -> None:
    """Split and store README.md and docs/ in a folder, through the core."""
    reader = PassageReader(encoder, chunk_tokens=160)
    files = find_files(["README.md", "docs"])
    with ColbertCollection.create(BUILD / "collection", encoder=encoder, dim=64, overwrite=True) as collection:
        report = collection.ingest(document for file in files for document in reader.read(file))
    console.print(f"Indexed {report.written} passages of {len(files)} files into {BUILD / 'collection'}.\n")


def ask_langchain(collection: ColbertCollection) -> None:
    """A chain as anybody would write it; a stand-in for a language model quotes the first passage."""
    retriever = JinaColbertRetriever.from_collection(collection, k=2, add_score=True)

    def join(documents: list) -> str:  # type: ignore[type-arg]
        return "\n\n".join(f"[{doc.metadata['source']}, score {doc.metadata['relevance_score']:.2f}]\n"
                           f"{doc.page_content}" for doc in documents)  # fmt: skip

    prompt = ChatPromptTemplate.from_template("{context}\n---\n{question}")
    quote = RunnableLambda(lambda value: value.to_string().split("\n---\n")[0].removeprefix("Human: "))
    chain = {"context": retriever | join, "question": RunnablePassthrough()} | prompt | quote | StrOutputParser()
    for question in QUESTIONS:
        console.print(Text(question, style="bold"))
        for passage in chain.invoke(question).split("\n\n[")[:2]:
            header, _, text = passage.removeprefix("[").partition("]\n")
            console.print(Text.assemble("  ", (header, "green")))
            console.print(first_lines(text))
        console.print()


def ask_llama_index(encoder: JinaColbertEncoder) -> None:
    """The same questions to an index of whole files, which LlamaIndex splits by itself."""
    files = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]
    documents = [LlamaDocument(text=file.read_text(encoding="utf-8"), metadata={"file": file.name}) for file in files]
    splitter = SentenceSplitter(chunk_size=160, chunk_overlap=0)
    index = JinaColbertIndex.from_documents(documents, encoder=encoder, dim=64, transformations=[splitter])
    retriever = index.as_retriever(similarity_top_k=1)
    for question in QUESTIONS:
        console.print(Text(question, style="bold"))
        for found in retriever.retrieve(question):
            console.print(Text.assemble("  ", (f"{found.node.metadata['file']}, score {found.score:.2f}", "green")))
            console.print(first_lines(found.node.get_content()))
        console.print()


def main() -> int:
    os.chdir(ROOT)
    quiet_libraries()
    BUILD.mkdir(parents=True, exist_ok=True)
    encoder = JinaColbertEncoder.from_pretrained("mini", dims=64)
    index_documentation(encoder)
    with ColbertCollection.open(BUILD / "collection", encoder=encoder) as collection:
        console.print(Rule("LangChain"))
        ask_langchain(collection)
        best = collection.search(QUESTIONS[0], k=1)[0]
        heatmap = BUILD / "heatmap.html"
        heatmap.write_text(collection.explain(QUESTIONS[0], best.id).to_html(), encoding="utf-8")
    console.print(Rule("LlamaIndex"))
    ask_llama_index(encoder)
    console.print(f"Which word matched which: open {heatmap} in a browser.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
