"""Serve a model with ``jcv2 serve``, and index and search through the server with LlamaIndex. Runs offline."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llama_index.core import Document

from jcv2_plugin import RemoteEncoder
from llama_index_jcv2 import JinaColbertIndex

NOTICES = {
    "pool": "The pool opens at seven and closes when it gets dark.",
    "sauna": "The sauna is heated on Fridays. Bring a towel to sit on.",
    "keys": "Lost keys are kept at the desk for a month.",
    "lockers": "Lockers take a coin, which you get back.",
}


@contextmanager
def served() -> Iterator[str]:
    """The address of a server. On a machine of its own: jcv2 serve --model mini --host 0.0.0.0 --port 8080"""
    command = [str(Path(sys.executable).with_name("jcv2")), "serve", "--model", "mini", "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        yield next(line for line in server.stderr if line.startswith("Serving")).split()[-1]
    finally:
        server.terminate()  # it finishes what runs
        server.communicate()
    print(f"The server ended with status {server.returncode}.")


def main() -> None:
    with served() as url:
        encoder = RemoteEncoder(url, model="mini", dim=64)
        documents = [Document(id_=name, text=text) for name, text in NOTICES.items()]
        index = JinaColbertIndex.from_documents(documents, encoder=encoder, location=":memory:")
        retriever = index.as_retriever(similarity_top_k=1)
        for question in ("When can I swim?", "Where is a key that I lost?"):
            print(f"{question} {retriever.retrieve(question)[0].node.ref_doc_id}")
        index.collection.close()


if __name__ == "__main__":
    main()
