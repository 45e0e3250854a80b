"""A LangChain chat over passages: what was said before tells what a short question means. Runs offline."""

from __future__ import annotations

from langchain_core.documents import Document
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.prompt_values import PromptValue
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnablePassthrough

from langchain_jcv2 import JinaColbertRetriever

PASSAGES = [
    ("boiler", "If the boiler breaks, tell the caretaker, who calls the engineer."),
    ("bicycles", "Bicycles belong in the shed behind the house, which opens with the front-door key."),
    ("laundry", "The washing machines take tokens; one out of order is noted on the list in the cellar."),
    ("roof", "The roof terrace is open from May to September, until ten at night."),
]
QUESTIONS = ["Tell me about the washing machines.", "And whom do I tell if one breaks?"]

REWRITE = ChatPromptTemplate.from_messages(
    [("system", "Make the last question one that stands alone."), ("placeholder", "{history}"), ("human", "{question}")]
)
ANSWER = ChatPromptTemplate.from_messages(
    [("system", "Answer from this passage:\n{context}"), ("placeholder", "{history}"), ("human", "{question}")]
)


def stand_in_model(prompt: PromptValue) -> AIMessage:
    """Quote the passage, or put the questions so far together. A real chat model goes here, such as ChatOllama."""
    instruction, *talk = prompt.to_messages()
    if "passage" in instruction.text:
        return AIMessage(instruction.text.partition("\n")[2])
    return AIMessage(" ".join(message.text for message in talk if isinstance(message, HumanMessage)))


def first_text(documents: list[Document]) -> str:
    return documents[0].page_content


def main() -> None:
    retriever = JinaColbertRetriever.from_documents(
        [Document(id=name, page_content=text) for name, text in PASSAGES], encoder="mini", dim=64, k=1
    )
    model = RunnableLambda(stand_in_model)
    context = REWRITE | model | (lambda message: message.text) | retriever | first_text
    chain = RunnablePassthrough.assign(context=context) | ANSWER | model

    history: list[BaseMessage] = []  # a chat's messages; yours come from wherever you keep them
    for question in QUESTIONS:
        answer = chain.invoke({"question": question, "history": history})
        history += [HumanMessage(question), answer]
        print(f"You:   {question}\nHouse: {answer.text}\n")
    print(f"Without the history: {retriever.invoke(QUESTIONS[1])[0].page_content}")


if __name__ == "__main__":
    main()
