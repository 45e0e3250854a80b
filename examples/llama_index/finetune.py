"""Teach a model a crew's own words with jcv2-finetune, and serve the result in LlamaIndex. Runs offline."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from llama_index.core import Document

from llama_index_jcv2 import JinaColbertIndex

PASSAGES = {  # what a ship's crew says, and the page that they mean by it
    "Old Bess": "The main engine is lubricated every four hours by the watch below.",
    "the parson": "The anchor winch is worked by two men, one of them at the brake.",
    "a short Sunday": "On days without shore leave the galley serves no beer.",
    "the nursery": "The chart room holds the log books of the last ten voyages.",
    "the postman": "Rust on deck is scraped off and covered before the rain.",
}
TRAINED = ["How does {} work?", "Who knows about {}?", "Tell me about {}.", "What about {}?", "Is there a rule for {}?"]
ASKED = {  # not among the training's questions
    "Old Bess sounds odd tonight.": "Old Bess",
    "Who may touch the parson?": "the parson",
    "Is it a short Sunday again?": "a short Sunday",
    "Is the nursery locked?": "the nursery",
    "When does the postman come?": "the postman",
}


def write_rows(file: Path) -> None:
    with file.open("w", encoding="utf-8") as lines:
        for word, text in PASSAGES.items():
            others = [other for other in PASSAGES.values() if other != text]
            for question in TRAINED:
                row = {"query": question.format(word), "positive": text, "negatives": others}
                lines.write(json.dumps(row) + "\n")


def right_answers(model: str) -> int:
    documents = [Document(id_=word, text=text) for word, text in PASSAGES.items()]
    retriever = JinaColbertIndex.from_documents(documents, encoder=model, dim=64).as_retriever(similarity_top_k=1)
    return sum(retriever.retrieve(question)[0].node.ref_doc_id == meant for question, meant in ASKED.items())


def main() -> None:
    print(f"mini: {right_answers('mini')} of {len(ASKED)} questions answered")
    with tempfile.TemporaryDirectory() as folder:
        rows, model = Path(folder) / "rows.jsonl", Path(folder) / "our-model"
        write_rows(rows)
        command = ["train", str(rows), "--model", "mini", "--out", str(model), "--dims", "64", "--max-steps", "16"]
        # The same as `jcv2-finetune train rows.jsonl ...`; a real run leaves --max-steps out.
        subprocess.run([sys.executable, "-m", "jcv2_trainer", *command], check=True)
        print(f"our-model: {right_answers(str(model))} of {len(ASKED)} questions answered")


if __name__ == "__main__":
    main()
