"""Encoders in forked processes."""

from __future__ import annotations

import os

import pytest
import starting

# Two threads, since an encoder with a single one has none to lose. The child's model must also find the tokenizer free.
FORK = """
import copy, os, signal, sys, threading
import torch
import numpy as np
from jcv2_plugin import JinaColbertEncoder
from jcv2_plugin.errors import ForkedProcessError

torch.set_num_threads(2)
TEXTS = ["The ferry sails at noon. " * 20, "Rice is cooked in water. " * 15, "A piano has keys. " * 25]


def encoded(encoder):
    return [*encoder.query_vectors(["when does the ferry sail?"], 64), *encoder.document_vectors(TEXTS, 64)]


def forked(work):
    child = os.fork()
    if not child:
        signal.alarm(30)
        try:
            work()
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def as_before(encoder):
    assert all(np.allclose(one, other, atol=1e-5) for one, other in zip(encoded(encoder), expected, strict=True))


def loaded_after():
    as_before(JinaColbertEncoder.from_pretrained("mini", device="cpu"))


def on_an_accelerator():
    for call in (lambda: elsewhere.encode(["a"]), lambda: elsewhere.encode_query("a")):
        try:
            call()
        except ForkedProcessError as error:
            assert "'mini' was loaded on meta" in str(error) and str(os.getppid()) in str(error), error
            assert "Load the model in each process" in str(error), error
        else:
            raise AssertionError("encoded")


encoder = JinaColbertEncoder.from_pretrained("mini", device="cpu")
forked(lambda: encoded(encoder))
expected = encoded(encoder)
elsewhere = copy.deepcopy(encoder).to("meta")
held, done = threading.Event(), threading.Event()


def hold():
    with encoder.tokenizer_lock:
        held.set()
        done.wait()


threading.Thread(target=hold).start()
held.wait()
forked(lambda: as_before(encoder))
done.set()
forked(loaded_after)
stop = threading.Event()
tokenising = threading.Thread(
    target=lambda: [encoder.preprocess(TEXTS * 20) for _ in iter(lambda: stop.wait(0.001), True)]
)
tokenising.start()
for _ in range(5):
    forked(lambda: as_before(encoder))
stop.set()
tokenising.join()
forked(on_an_accelerator)
as_before(encoder)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_an_encoder_works_in_a_forked_child() -> None:
    """Loaded only, used before, or loaded after the fork; an accelerator is refused."""
    done = starting.run(FORK, timeout=200)
    assert done.returncode == 0, done.stderr
