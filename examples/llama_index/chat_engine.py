"""A LlamaIndex chat engine over passages: what was said before tells what a short question means. Runs offline."""

from __future__ import annotations

from typing import Any

from llama_index.core import Document
from llama_index.core.chat_engine.types import ChatMode
from llama_index.core.llms import CompletionResponse, CompletionResponseGen, CustomLLM, LLMMetadata
from llama_index.core.llms.callbacks import llm_completion_callback

from llama_index_jcv2 import JinaColbertIndex

PASSAGES = [
    ("boiler", "If the boiler breaks, tell the caretaker, who calls the engineer."),
    ("bicycles", "Bicycles belong in the shed behind the house, which opens with the front-door key."),
    ("laundry", "The washing machines take tokens; one out of order is noted on the list in the cellar."),
    ("roof", "The roof terrace is open from May to September, until ten at night."),
]
QUESTIONS = ["Tell me about the washing machines.", "And whom do I tell if one breaks?"]


class StandIn(CustomLLM):
    """Quotes the passage, or puts the questions so far together. A real model goes here, such as Ollama."""

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="stand-in")

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        if prompt.startswith("Rewrite"):
            said = [line.partition(": ")[2] for line in prompt.splitlines() if line.startswith("user: ")]
            return CompletionResponse(text=" ".join(said))
        return CompletionResponse(text=prompt.partition("Passage: ")[2].splitlines()[0])

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        yield self.complete(prompt, formatted, **kwargs)


def main() -> None:
    documents = [Document(id_=name, text=text) for name, text in PASSAGES]
    index = JinaColbertIndex.from_documents(documents, encoder="mini", dim=64)
    engine = index.as_chat_engine(
        chat_mode=ChatMode.CONDENSE_PLUS_CONTEXT,
        llm=StandIn(),
        similarity_top_k=1,
        condense_prompt="Rewrite the last question so that it stands alone.\n{chat_history}\nuser: {question}",
        context_prompt="Answer from the passage alone.\nPassage: {context_str}",
    )
    for question in QUESTIONS:
        answer = engine.chat(question)
        print(f"You:   {question}\nHouse: {answer.response}\n       (from {answer.source_nodes[0].node.ref_doc_id})\n")
    print("Without the history:", index.as_retriever(similarity_top_k=1).retrieve(QUESTIONS[1])[0].text)


if __name__ == "__main__":
    main()
