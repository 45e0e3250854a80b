"""Texts in several languages in one LlamaIndex index, asked in others. Runs offline."""

from __future__ import annotations

from llama_index.core import Document
from llama_index.core.llms import MockLLM
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters

from llama_index_jcv2 import JinaColbertIndex, ScoredNode

RULES = {  # of a museum
    "en": "The museum is closed on Mondays.",
    "de": "Hunde dürfen nicht in den Garten.",  # dogs are not allowed in the garden
    "fr": "Les enfants de moins de six ans entrent gratuitement.",  # children under six enter free of charge
    "es": "Las entradas se compran en la puerta o por teléfono.",  # tickets are bought at the door or by telephone
    "zh": "馆内可以拍照，但请勿使用闪光灯。",  # photographs may be taken, but without flash
}
QUESTIONS = {
    "هل المتحف مفتوح يوم الاثنين؟": "Is the museum open on Mondays?",
    "क्या कुत्ते बगीचे में जा सकते हैं?": "Can dogs go into the garden?",
    "子どもは無料ですか。": "Is it free for children?",
    "Dove si comprano i biglietti?": "Where are tickets bought?",
    "Можно ли фотографировать?": "May one take photographs?",
}


def main() -> None:
    documents = [Document(id_=language, text=text, metadata={"language": language}) for language, text in RULES.items()]
    for document in documents:
        document.excluded_embed_metadata_keys = ["language"]  # for filters, not for the model to read
    index = JinaColbertIndex.from_documents(
        documents,
        encoder="mini-multilingual",  # about a hundred languages; "jinaai/jina-colbert-v2" is larger
        dim=128,
    )
    retriever = index.as_retriever(similarity_top_k=1)
    for question, meaning in QUESTIONS.items():
        found = retriever.retrieve(question)[0]
        assert isinstance(found, ScoredNode)  # LlamaIndex's node with score, with relevance and explanation
        print(f"{question} ({meaning})\n  relevance {found.relevance:.2f}  {found.node.ref_doc_id}: {found.text}")

    chinese = MetadataFilters(filters=[MetadataFilter(key="language", value="zh")])
    found = retriever.with_options(filters=chinese).retrieve("Dove si comprano i biglietti?")[0]
    print("\nIn Chinese only:", found.node.ref_doc_id)

    # MockLLM repeats its prompt; a real model goes here, and answers in the language of the question.
    engine = index.as_query_engine(llm=MockLLM(), similarity_top_k=1)
    response = engine.query("子どもは無料ですか。")
    print("The query engine's source:", response.source_nodes[0].node.ref_doc_id)


if __name__ == "__main__":
    main()
