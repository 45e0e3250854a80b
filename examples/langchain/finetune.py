"""Teach a model a firm's own words with jcv2-finetune, and serve the result in LangChain. Runs offline."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from langchain_jcv2 import JinaColbertRetriever

PASSAGES = {  # what people here say, and the page that they mean by it
    "Gustav": "The printer on the second floor prints on both sides of a sheet.",
    "Greta": "The coffee machine wants fresh water every morning.",
    "the aquarium": "The meeting room with the glass wall is booked at the front desk.",
    "a blue slip": "A request for leave is signed by your manager two weeks before.",
    "the long road": "Backups of the database are kept for ninety days.",
}
TRAINED = ["How does {} work?", "Who knows about {}?", "Tell me about {}.", "What about {}?", "Is there a rule for {}?"]
ASKED = {  # not among the training's questions
    "Gustav is broken, who can help?": "Gustav",
    "Where is Greta?": "Greta",
    "May I use the aquarium at noon?": "the aquarium",
    "I need a blue slip for August.": "a blue slip",
    "Can I get back a file through the long road?": "the long road",
}


def write_rows(file: Path) -> None:
    with file.open("w", encoding="utf-8") as lines:
        for word, text in PASSAGES.items():
            others = [other for other in PASSAGES.values() if other != text]
            for question in TRAINED:
                row = {"query": question.format(word), "positive": text, "negatives": others}
                lines.write(json.dumps(row) + "\n")


def right_answers(model: str) -> int:
    retriever = JinaColbertRetriever.from_texts(PASSAGES.values(), ids=list(PASSAGES), encoder=model, dim=64, k=1)
    return sum(retriever.invoke(question)[0].id == meant for question, meant in ASKED.items())


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
