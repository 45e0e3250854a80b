"""Ask a LangChain retriever in one language and find texts in another. Runs offline."""

from __future__ import annotations

from langchain_core.documents import Document

from langchain_jcv2 import JinaColbertVectorStore

NOTICES = [  # in English
    ("buses", "The last bus to the harbour leaves at midnight, on Sundays at ten."),
    ("lockers", "Suitcases and bags can be left in the lockers behind the ticket office."),
    ("refunds", "Tickets can be returned until one hour before departure; the money is paid back."),
    ("lost", "Things that were left on a train are kept in the lost property office for ninety days."),
    ("dogs", "Dogs travel free of charge, but large dogs must wear a muzzle."),
    ("bicycles", "Bicycles need a ticket of their own and travel in the last carriage."),
]
QUESTIONS = {
    "¿A qué hora sale el último autobús?": "When does the last bus leave?",
    "车票可以退吗？": "Can tickets be returned?",
    "هل يسافر الكلب مجانًا؟": "Does a dog travel free of charge?",
    "Можно ли взять велосипед в поезд?": "May I take a bicycle on the train?",
}


def main() -> None:
    store = JinaColbertVectorStore.from_documents(
        [Document(id=name, page_content=text, metadata={"language": "en"}) for name, text in NOTICES],
        encoder="mini-multilingual",  # about a hundred languages; "jinaai/jina-colbert-v2" is larger
        dim=128,
    )
    for question, meaning in QUESTIONS.items():
        [(document, relevance)] = store.similarity_search_with_relevance_scores(question, k=1)
        print(f"{question} ({meaning})\n  relevance {relevance:.2f}  {document.id}: {document.page_content}")

    # Nothing is translated: words that mean the same have similar vectors, and match.
    question = next(iter(QUESTIONS))
    _, explanation = store.similarity_search_with_explanation(question, k=1)[0]
    matches = sorted(explanation.matches, key=lambda match: match.similarity, reverse=True)
    words = [(match.query.token, match.document.token) for match in matches if not match.query.is_special]
    print("\nBest matches:", ", ".join(f"{asked} -> {found}" for asked, found in words[:2]).replace("▁", ""))

    # Documents in other languages lie in the same store.
    store.add_texts(["Der Speisewagen schließt um neun Uhr abends."], [{"language": "de"}], ids=["dining"])
    print("Added:", store.similarity_search("When does the dining car close?", k=1)[0].id)
    only_english = store.similarity_search("When does the dining car close?", k=1, filter={"language": "en"})
    print("In English only:", only_english[0].id)


if __name__ == "__main__":
    main()
