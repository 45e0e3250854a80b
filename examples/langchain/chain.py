"""A LangChain chain that answers from passages found by late interaction. Runs offline."""

from __future__ import annotations

from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompt_values import PromptValue
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough

from langchain_jcv2 import JinaColbertRetriever

PASSAGES = [
    ("heating", "The boiler is serviced every October; the caretaker lets the engineer in."),
    ("bicycles", "Bicycles belong in the shed behind the house, which opens with the front-door key."),
    ("laundry", "The washing machines in the cellar take tokens, sold by the caretaker on Mondays."),
    ("guests", "Guests may park in the yard for three days if their number plate is on the list."),
]
QUESTION = "Where can I leave my bike?"

PROMPT = ChatPromptTemplate.from_template(
    "Answer from these passages alone.\n\n{context}\n\nQuestion: {question}\nAnswer:",
)


def stand_in_model(prompt: PromptValue) -> str:
    """Quote the first passage. A real chat model goes here, such as ChatOllama(model=...)."""
    lines = prompt.to_string().splitlines()
    return next(line for line in lines if line.startswith("- ")).removeprefix("- ")


def as_context(documents: list[Document]) -> str:
    return "\n".join(f"- {document.page_content}" for document in documents)


def main() -> None:
    retriever = JinaColbertRetriever.from_documents(
        [Document(id=topic, page_content=text, metadata={"topic": topic}) for topic, text in PASSAGES],
        encoder="mini",  # English, shipped with the package; "jinaai/jina-colbert-v2" for many languages
        dim=64,
        k=2,
        add_score=True,
    )
    answer = PROMPT | stand_in_model | StrOutputParser()
    chain = RunnablePassthrough.assign(sources=lambda given: retriever.invoke(given["question"])).assign(
        answer=RunnablePassthrough.assign(context=lambda given: as_context(given["sources"])) | answer
    )
    result = chain.invoke({"question": QUESTION})
    print(f"Question: {QUESTION}\nAnswer:   {result['answer']}\nSources:")
    for document in result["sources"]:
        print(f"  {document.metadata['relevance_score']:6.2f}  {document.id}")


if __name__ == "__main__":
    main()
