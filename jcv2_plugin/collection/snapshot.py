"""Snapshots: a whole collection in one file, which can be restored on any engine without encoding.

A snapshot is a zip archive (with checksums) of the schema and of parts with the points' payloads, token vectors and
first-stage vectors. It is written under a temporary name and renamed at the end, so an existing snapshot is complete.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from jcv2_plugin.collection.location import Location
from jcv2_plugin.collection.repair import refilled
from jcv2_plugin.collection.verify import problem_of
from jcv2_plugin.documents import HASH_KEY, StoredDocument, checked
from jcv2_plugin.engines.base import Engine, NewCollection, Point, Record
from jcv2_plugin.engines.first_stage import SparseVector, StageVector, check_stage_vector
from jcv2_plugin.engines.schema import CollectionSchema
from jcv2_plugin.errors import (
    CollectionCorruptError,
    CollectionNotFoundError,
    InvalidDocumentError,
    InvalidVectorError,
    Jcv2Error,
)
from jcv2_plugin.files import new_file, open_regular, parse_json, sweep

SNAPSHOT_FORMAT = 1
_DESCRIPTION = "snapshot.json"
_FLOATS_A_PART = 8 * 1024 * 1024
_TEXT_A_PART = 64 * 1024 * 1024
# A member may be inflated to 1 GiB. Text of more than 64 MiB is not expected to shrink to less than a hundredth.
_LARGEST_MEMBER = 1024**3
_SMALL_MEMBER = 64 * 1024**2
_RATIO = 100


class SnapshotError(Jcv2Error, ValueError):
    """The file is not a snapshot or is damaged."""


@dataclass(frozen=True)
class SnapshotInfo:
    """Contents of a snapshot: schema, number of documents and number of parts."""

    schema: CollectionSchema
    documents: int
    parts: int


def write_snapshot(
    engine: Engine, schema: CollectionSchema, file: Path, progress: Callable[[int], None] | None
) -> SnapshotInfo:
    """Write all points to a new file. Raises SnapshotError, also for what :func:`check_snapshot` refuses."""
    sweep(file)
    if file.exists() or file.is_symlink():
        raise SnapshotError(f"{str(file)!r} is there already. Choose another name, or remove it.")
    file.parent.mkdir(parents=True, exist_ok=True)
    documents = parts = 0
    try:
        with (
            new_file(file, replace=False) as stream,
            zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED, allowZip64=True) as archive,
        ):
            for number, records in enumerate(_parts(engine.scroll(None, with_payload=True, with_vectors=True))):
                for record in records:
                    _check_can_be_restored(engine, schema, record)
                _write_part(archive, number, records, schema)
                documents += len(records)
                parts += 1
                if progress is not None:
                    progress(len(records))
            info = SnapshotInfo(schema, documents, parts)
            described = {
                "format": SNAPSHOT_FORMAT,
                "documents": documents,
                "parts": parts,
                "members": archive.namelist(),
                "schema": schema.to_dict(),
            }
            archive.writestr(_DESCRIPTION, json.dumps(described, indent=2))
        return info
    except FileExistsError as error:
        raise SnapshotError(
            f"{str(file)!r} was written meanwhile by another process, whose snapshot is kept. Choose another name."
        ) from error


def read_info(file: Path) -> SnapshotInfo:
    """Read the information about a snapshot, without its parts. Raises SnapshotError for another file."""
    try:
        with open_regular(file) as stream, zipfile.ZipFile(stream) as archive:
            described = parse_json(_read(archive, _DESCRIPTION))
        known = 1 <= described["format"] <= SNAPSHOT_FORMAT
        documents, parts, schema = int(described["documents"]), int(described["parts"]), described["schema"]
    except FileNotFoundError as error:
        raise SnapshotError(f"There is no snapshot {str(file)!r}. Check the path.") from error
    except Exception as error:  # damaged archives raise various errors
        raise SnapshotError(f"{str(file)!r} is no snapshot, or is damaged: {error}. Take another one.") from error
    if not known:
        raise SnapshotError(
            f"{str(file)!r} has format {described['format']!r:.60}, too new for this version or unknown. Upgrade "
            "jcv2-plugin, or take another snapshot."
        )
    return SnapshotInfo(CollectionSchema.from_dict(schema, f"The snapshot {str(file)!r}"), documents, parts)


def check_snapshot(file: Path) -> None:
    """Read a whole snapshot, before it replaces anything: its checksums, and every point. Raises SnapshotError."""
    info = read_info(file)
    try:
        with open_regular(file) as stream, zipfile.ZipFile(stream) as archive:
            there = set(archive.namelist())
            lost = set(parse_json(_read(archive, _DESCRIPTION))["members"]) - there
        surplus = sorted(name for name in there if "/" in name and int(name.partition("/")[0]) >= info.parts)
        ids: set[str] = set()
        documents = 0
        for number, points in enumerate(read_points(file)):
            documents += len(points)
            for point in points:
                if problem := _problem(info.schema, point, ids):
                    raise ValueError(f"{_name(number, '')} {problem}")
    except (MemoryError, SnapshotError):
        raise
    except Exception as error:  # damaged archives raise various errors
        raise SnapshotError(f"{str(file)!r} is damaged: {error}. Use another snapshot.") from error
    if lost or surplus or documents != info.documents:
        raise SnapshotError(
            f"{str(file)!r} is damaged: it has {documents} of {info.documents} documents, lacks {sorted(lost)[:3]} and "
            f"has {surplus[:3]} too many. Use another snapshot."
        )


def _check_can_be_restored(engine: Engine, schema: CollectionSchema, record: Record) -> None:
    vectors = np.empty((0, schema.dim), np.float32) if record.vectors is None else record.vectors
    with np.errstate(over="ignore"):  # too large becomes infinite, which is refused
        vectors = vectors.astype(_written_type(schema))
    if problem := _problem(schema, Point(record.id, vectors, record.payload, record.stages), set()):
        raise SnapshotError(
            f"{engine.title}: {problem} No snapshot of it could be restored, so none was written. Delete the document, "
            "or add it again."
        )


def _problem(schema: CollectionSchema, point: Point, ids: set[str]) -> str | None:
    """Return what is wrong with a point. ``ids`` are those of the points before it."""
    if point.id in ids:
        return f"Point {point.id} occurs twice."
    ids.add(point.id)
    if problem := problem_of(schema, Record(point.id, point.payload, vectors=point.vectors)):
        return problem
    if not isinstance(value := point.payload.get(HASH_KEY, ""), str):
        return f"Point {point.id} has a hash that is not a str: {value!r:.60}."
    try:
        checked(StoredDocument.from_payload(point.payload).as_document(), "Its document", is_stored=True)
    except InvalidDocumentError as error:
        return f"Point {point.id} cannot be stored. {error}"
    for name, vector in point.stages.items():
        if (params := schema.stages.get(name)) is None:
            return f"Point {point.id} has a vector {name!r}, which first_stage={schema.first_stage!r} does not have."
        try:
            check_stage_vector(vector, params, "It")
        except InvalidVectorError as error:
            return f"Point {point.id} has an invalid vector {name!r}. {error}"
    return None


def read_points(file: Path) -> Iterator[list[Point]]:
    """Yield the points of a snapshot, part by part. Raises SnapshotError for a damaged one."""
    info = read_info(file)
    with open_regular(file) as stream, zipfile.ZipFile(stream) as archive:
        for number in range(info.parts):
            try:
                yield _read_part(archive, number)
            except MemoryError:
                raise
            except Exception as error:  # damaged archives raise various errors
                raise SnapshotError(
                    f"{str(file)!r} is damaged: {_name(number, '')} {error}. Use another snapshot."
                ) from error


def restore_snapshot(
    file: Path,
    location: Location,
    *,
    overwrite: bool,
    client_options: Mapping[str, Any] | None,
    options: NewCollection,
    progress: Callable[[int], None] | None,
) -> tuple[Engine, CollectionSchema]:
    """Restore a checked snapshot into a collection that is swapped in at the end.

    An interrupted restore leaves the existing collection unchanged.
    """
    info = read_info(file)
    engine = _open_existing(location, overwrite=overwrite, client_options=client_options, options=options)
    if engine is None:
        marked = replace(info.schema, unfinished="restoration")
        engine = location.create(marked, overwrite=overwrite, client_options=client_options, options=options)

    def points() -> Iterator[list[Point]]:
        for part in read_points(file):
            yield part
            if progress is not None:
                progress(len(part))

    return refilled(engine, info.schema, points(), "the snapshot's", options.payload_indexes), info.schema


def _open_existing(
    location: Location, *, overwrite: bool, client_options: Mapping[str, Any] | None, options: NewCollection
) -> Engine | None:
    """Open the collection that is to be replaced: any, or one whose restoration was interrupted."""
    if options.shard_key is not None or options.engine_options:
        return None
    try:
        engine = location.open(client_options=client_options, retries=options.retries)
    except (CollectionNotFoundError, CollectionCorruptError):
        return None
    try:
        engine.drop_replaced()  # if an earlier restoration was interrupted before it
        described = engine.describe()
    except BaseException:
        engine.close()
        raise
    if overwrite or (isinstance(described, dict) and described.get("unfinished") == "restoration"):
        return engine
    engine.close()
    return None


def _parts(records: Iterator[Record]) -> Iterator[list[Record]]:
    part: list[Record] = []
    floats = text = 0
    for record in records:
        part.append(record)
        floats += 0 if record.vectors is None else record.vectors.size
        text += len(json.dumps(record.payload))
        if floats >= _FLOATS_A_PART or text >= _TEXT_A_PART:
            yield part
            part, floats, text = [], 0, 0
    if part:
        yield part


def _name(number: int, what: str) -> str:
    return f"{number:06d}/{what}"


def _write_part(archive: zipfile.ZipFile, number: int, records: list[Record], schema: CollectionSchema) -> None:
    rows = [{"id": record.id, "payload": record.payload} for record in records]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    archive.writestr(_name(number, "payloads.jsonl"), lines, zipfile.ZIP_DEFLATED)
    kind = _written_type(schema)
    matrices = [np.empty((0, schema.dim)) if one.vectors is None else one.vectors for one in records]
    _write_array(archive, _name(number, "rows.npy"), np.array([len(matrix) for matrix in matrices]))
    _write_array(archive, _name(number, "vectors.npy"), np.concatenate(matrices).astype(kind))
    for name in sorted({name for record in records for name in record.stages}):
        found = [(position, record.stages[name]) for position, record in enumerate(records) if name in record.stages]
        positions = np.array([position for position, _ in found])
        _write_array(archive, _name(number, f"{name}.places.npy"), positions)
        for suffix, array in _stage_arrays([vector for _, vector in found]).items():
            _write_array(archive, _name(number, f"{name}.{suffix}.npy"), array)


def _written_type(schema: CollectionSchema) -> Any:
    # float16 is lossless for vectors stored as float16 or less.
    return np.float32 if schema.storage == "float32" else np.float16


def _stage_arrays(vectors: list[StageVector]) -> dict[str, NDArray[Any]]:
    if not isinstance(vectors[0], SparseVector):
        return {"dense": np.stack(cast("list[NDArray[np.float32]]", vectors))}
    sparse = cast("list[SparseVector]", vectors)
    return {
        "lengths": np.array([len(one.indices) for one in sparse]),
        "indices": np.concatenate([np.asarray(one.indices, dtype=np.int64) for one in sparse]),
        "values": np.concatenate([np.asarray(one.values, dtype=np.float32) for one in sparse]),
    }


def _write_array(archive: zipfile.ZipFile, name: str, array: NDArray[Any]) -> None:
    with archive.open(name, "w", force_zip64=True) as member:
        np.lib.format.write_array(cast("io.BytesIO", member), np.ascontiguousarray(array), allow_pickle=False)


def _read(archive: zipfile.ZipFile, name: str) -> bytes:
    """Read a member, after checking that it does not inflate to more than one of ours would."""
    member = archive.getinfo(name)
    if member.file_size > _LARGEST_MEMBER or member.file_size > max(_SMALL_MEMBER, _RATIO * member.compress_size):
        raise ValueError(f"{name} would inflate from {member.compress_size:,} to {member.file_size:,} bytes")
    return archive.read(member)


def _read_array(archive: zipfile.ZipFile, name: str, kinds: str = "iu", axes: int = 1) -> NDArray[Any]:
    """Read a member that :func:`_write_array` wrote, with so many axes: integers, or floats if ``kinds`` is ``"f"``."""
    content = _read(archive, name)
    stream = io.BytesIO(content)
    np.lib.format.read_magic(stream)
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    there = len(content) - stream.tell()
    if fortran or dtype.kind not in kinds or len(shape) != axes or math.prod(shape) * dtype.itemsize != there:
        raise ValueError(f"{name} has the shape {shape} and type {dtype} in {there:,} bytes, which no snapshot has")
    return cast("NDArray[Any]", np.frombuffer(content, dtype, offset=stream.tell()).reshape(shape))


def _read_part(archive: zipfile.ZipFile, number: int) -> list[Point]:
    rows = [parse_json(line) for line in _read(archive, _name(number, "payloads.jsonl")).decode().split("\n") if line]
    for row in rows:
        if not (isinstance(row, dict) and isinstance(row.get("id"), str) and isinstance(row.get("payload"), dict)):
            raise ValueError(f"payloads.jsonl has the row {row!r:.80}, without an id and a payload")
    ends = np.cumsum(_read_array(archive, _name(number, "rows.npy")))[:-1]
    matrices = np.split(_read_array(archive, _name(number, "vectors.npy"), "f", axes=2).astype(np.float32), ends)
    stages: list[dict[str, StageVector]] = [{} for _ in rows]
    prefix = _name(number, "")
    members = [name.removeprefix(prefix) for name in archive.namelist() if name.startswith(prefix)]
    for name in (member.removesuffix(".places.npy") for member in members if member.endswith(".places.npy")):
        positions = _read_array(archive, f"{prefix}{name}.places.npy").tolist()
        if not set(positions) <= set(range(len(rows))) or len(set(positions)) < len(positions):
            raise ValueError(f"{name}.places.npy has positions that are not those of {len(rows)} rows")
        for position, vector in zip(positions, _read_stage(archive, f"{prefix}{name}", members, name), strict=True):
            stages[position][name] = vector
    return [
        Point(row["id"], matrix, row["payload"], own) for row, matrix, own in zip(rows, matrices, stages, strict=True)
    ]


def _read_stage(archive: zipfile.ZipFile, path: str, members: list[str], name: str) -> list[StageVector]:
    if f"{name}.dense.npy" in members:
        return list(_read_array(archive, f"{path}.dense.npy", "f", axes=2).astype(np.float32))
    ends = np.cumsum(_read_array(archive, f"{path}.lengths.npy"))[:-1]
    indices = np.split(_read_array(archive, f"{path}.indices.npy"), ends)
    values = np.split(_read_array(archive, f"{path}.values.npy", "f"), ends)
    return [SparseVector(i.tolist(), v.tolist()) for i, v in zip(indices, values, strict=True)]
