"""A retriever as an agent's tool in LangChain. Runs offline."""

from __future__ import annotations

from langchain_core.documents import Document
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolCall, ToolMessage
from langchain_core.tools import BaseTool, create_retriever_tool

from langchain_jcv2 import JinaColbertRetriever

PASSAGES = {
    "returns": "Goods may be sent back within thirty days, in their box.",
    "shipping": "Parcels leave on the day of the order if it comes before noon.",
    "warranty": "Electric tools have a warranty of five years, batteries one of two.",
}
QUESTION = "For how long is a drill's battery covered?"


def stand_in_model(messages: list[BaseMessage], tools: list[BaseTool]) -> AIMessage:
    """Look up the question once, then quote what came back. A real one: ChatOllama(...).bind_tools(tools)."""
    last = messages[-1]
    if isinstance(last, ToolMessage):
        return AIMessage(f"The shop's rules say: {last.text}")
    call = ToolCall(name=tools[0].name, args={"query": last.text}, id="call-1")
    return AIMessage("", tool_calls=[call])


def main() -> None:
    retriever = JinaColbertRetriever.from_documents(
        [Document(id=name, page_content=text) for name, text in PASSAGES.items()], encoder="mini", dim=64, k=1
    )
    tool = create_retriever_tool(
        retriever,
        name="shop_rules",
        description="Finds the shop's rules on a question. Ask in a whole sentence.",
        response_format="content_and_artifact",  # the documents come with the answer, for showing sources
    )
    print(f"Tool: {tool.name}{tuple(tool.args)}\nQuestion: {QUESTION}")

    messages: list[BaseMessage] = [HumanMessage(QUESTION)]
    while True:  # what LangChain's create_agent(model, tools=[tool]) does
        answer = stand_in_model(messages, [tool])
        messages.append(answer)
        if not answer.tool_calls:
            break
        for call in answer.tool_calls:
            result = tool.invoke({**call, "type": "tool_call"})
            print(f"Called with: {call['args']['query']}\nSources: {[document.id for document in result.artifact]}")
            messages.append(result)
    print(answer.text)


if __name__ == "__main__":
    main()
