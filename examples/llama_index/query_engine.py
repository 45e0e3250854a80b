"""A LlamaIndex index over token vectors: passages with scores, a filter, a query engine. Runs offline."""

from __future__ import annotations

from llama_index.core import Document
from llama_index.core.llms import MockLLM
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters

from llama_index_jcv2 import JinaColbertIndex

PASSAGES = [
    ("kettle", "kitchen", "Descale the kettle with vinegar once a month, then boil clear water twice."),
    ("oven", "kitchen", "The oven door comes off its hinges for cleaning; lift it at half height."),
    ("drain", "bathroom", "If the shower drains slowly, unscrew the cover and pull out the hair."),
    ("mirror", "bathroom", "A little soap, wiped dry, keeps the mirror from fogging up."),
]
QUESTION = "How do I get limescale out of the thing that heats water?"


def main() -> None:
    index = JinaColbertIndex.from_documents(
        [Document(id_=name, text=text, metadata={"room": room}) for name, room, text in PASSAGES],
        encoder="mini",  # English, shipped with the package; "jinaai/jina-colbert-v2" for many languages
        dim=64,
        location=":memory:",  # or a folder, which JinaColbertIndex.from_collection opens again
    )
    print(f"Question: {QUESTION}\n\nAll rooms:")
    for found in index.as_retriever(similarity_top_k=2).retrieve(QUESTION):
        print(f"  {found.score:6.2f}  {found.node.ref_doc_id}: {found.text}")

    print("\nThe bathroom only:")
    bathroom = MetadataFilters(filters=[MetadataFilter(key="room", value="bathroom")])
    for found in index.as_retriever(similarity_top_k=2, filters=bathroom).retrieve(QUESTION):
        print(f"  {found.score:6.2f}  {found.node.ref_doc_id}: {found.text}")

    # MockLLM repeats its prompt; a real model goes here, such as Ollama(model=...).
    engine = index.as_query_engine(llm=MockLLM(), similarity_top_k=1)
    response = engine.query(QUESTION)
    print("\nThe query engine's source:", response.source_nodes[0].node.ref_doc_id)


if __name__ == "__main__":
    main()
