"""``lmsmith pull``, ``lmsmith models …`` and ``lmsmith export``: models by name and format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmsmith import api
from lmsmith.catalogue import registry, versions
from lmsmith.catalogue.registry import KNOWN_MODELS
from lmsmith.catalogue.resolve import resolve
from lmsmith.cli.output import print_json, table_console
from lmsmith.cli.parsing import printed
from lmsmith.core.format import format_size
from lmsmith.core.paths import models_folder
from lmsmith.models.config import EncoderDecoderConfig
from lmsmith.models.presets import PRESETS, TRANSFORMERS

if TYPE_CHECKING:
    from lmsmith.catalogue.export import ExportedModel
    from lmsmith.models.config import ModelConfig


def _show_pulled(record: registry.Record) -> None:
    print(f"{record.name}: {format_size(record.bytes)} in {record.path}")
    if KNOWN_MODELS.get(record.name) is not None and record.format == "hf":
        print(f'make vectors of texts: lmsmith embed {record.name} "a text"')
    else:
        print(f"talk with it: lmsmith chat {record.name}")


pull = printed(api.pull, _show_pulled)


def list_models(*, json: bool = False) -> None:
    """List models with versions, registered models, and those that can be fetched by name."""
    found = registry.records()
    here = {record.name for record in found}
    offered = {name: model for name, model in KNOWN_MODELS.items() if name not in here}
    made = [_versions_of(name) for name in versions.names()]
    if json:
        offers = [{"name": name, "about": m.about, "bytes": m.bytes} for name, m in offered.items()]
        models = [record.as_dict() for record in found]
        print_json(
            {"home": str(models_folder()), "versions": made, "models": models, "pull": offers}
        )
        return
    for each in made:
        marks = {each["promoted"]: " (promoted)", each["on_trial"]: " (on trial)"}
        words = (word + marks.get(word, "") for word in each["versions"])
        print(f"{each['name']}  versions  {', '.join(words)}")
    for record in found:
        print(f"{record.name}  {record.format}  {format_size(record.bytes)}  {record.source}")
    if not found and not made:
        print("no model is registered")
    for name, model in offered.items():
        print(f"to fetch: lmsmith pull {name}  ({format_size(model.bytes)}; {model.about})")


def _versions_of(name: str) -> dict[str, Any]:
    """The versions of a name as commands call them."""
    lineage = versions.lineage_of(name)
    return {
        "name": name,
        "promoted": f"{name}@{lineage.promoted}",
        "on_trial": f"{name}@{lineage.trial.candidate}" if lineage.trial else None,
        "versions": [each.word for each in versions.versions(name)],
    }


def show_model(model: str, *, json: bool = False) -> None:
    """Show where a model is from, its shape, and the page of a version.

    Args:
        model: A name with versions (NAME or NAME@N), a registered name, or a path of any format.
    """
    from lmsmith.catalogue.reading import read_config
    from lmsmith.catalogue.translators import is_translator, translator_config

    source, version = resolve(model), versions.find(model)
    both = translator_config(source) if is_translator(source) else None
    config, record = both.model if both else read_config(source), registry.find(source.name)
    known = record.as_dict() if record is not None and record.path == source.path else {}
    rows = {
        "name": source.name,
        "path": str(source.path),
        "format": source.format,
        **{key: known[key] for key in ("source", "licence", "sha256", "bytes", "date") if known},
        **_shape(config),
        "ffn_width": config.resolved_ffn_width,
        "positions": config.positions,
        "norm": f"{config.norm_position}-{config.norm}",
        "activation": config.activation,
        "parameters": both.parameters if both else config.parameters,
        "cache_bytes_per_token": config.cache_bytes_per_token(),
    }
    if both is not None:
        rows["decoder_layers"] = both.resolved_decoder_layers
    if version is not None and version.path == source.path:
        from lmsmith.report.version.page import ensure_version_page

        rows |= {"version": version.word, "verdict": version.verdict}
        rows["report"] = str(ensure_version_page(version))
    if json:
        print_json(rows)
        return
    width = max(len(key) for key in rows)
    for key, value in rows.items():
        shown = f"{value:,}" if isinstance(value, int) else value
        print(f"{key.replace('_', ' '):<{width}}  {shown}")


def _shape(config: ModelConfig) -> dict[str, int]:
    return {
        "layers": config.layers,
        "width": config.width,
        "heads": config.heads,
        "kv_heads": config.resolved_kv_heads,
        "head_width": config.width_per_head,
        "context": config.context,
        "vocabulary_size": config.vocabulary_size,
    }


def remove_model(name: str, *, json: bool = False) -> None:
    """Delete a registered model and its files."""
    record = registry.remove(name)
    if json:
        print_json({"removed": record.name, "bytes": record.bytes})
    else:
        print(f"{record.name} is gone: {format_size(record.bytes)} are free")


def _show_exported(found: ExportedModel) -> None:
    print(f"{found.path}: {format_size(found.bytes)} ({found.type})")


export = printed(api.export, _show_exported)


BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
"""Bytes of one parameter, at each precision."""


def list_presets(*, json: bool = False) -> None:
    """List model shapes with their size, their cost to train, and what their cache takes.

    Bytes are of the parameters alone. A training step's operations are of matrix products, forward
    and backward, for one token at full context. The cache is bfloat16; banded layers keep their
    window of it. The Transformer's have so many layers on each side; its token is one of a source
    and one of a target, its cache the target's.
    """
    from rich.table import Table

    rows: dict[str, dict[str, Any]] = {}
    for name, preset in {**PRESETS, **TRANSFORMERS}.items():
        config, length = preset.config, preset.config.context
        parameters, flops = config.parameters, config.training_flops_per_token()
        if name in TRANSFORMERS:
            both = EncoderDecoderConfig(config)
            parameters, flops = both.parameters, both.training_flops(length, length) / length
        rows[name] = {
            **_shape(config),
            "parameters": parameters,
            "bytes": {kind: parameters * size for kind, size in BYTES.items()},
            "training_flops_per_token": flops,
            "cache_bytes_per_token": config.cache_bytes_per_token(),
            "cache_bytes_at_context": config.cache_bytes(config.context),
            "source": preset.source,
        }
    if json:
        print_json({"presets": rows})
        return
    table = Table(
        caption="heads × head width; GB of parameters; FLOPs to train on a token at full context; "
        "bfloat16 cache of one token, and of a full context"
    )
    names = ["preset", "layers", "width", "heads", "context", "parameters"]
    names += [*BYTES, "FLOPs/token", "cache/token", "cache"]
    for name in names:
        table.add_column(name, justify="left" if name == "preset" else "right", no_wrap=True)
    for name, row in rows.items():
        table.add_row(
            name,
            str(row["layers"]),
            f"{row['width']:,}",
            f"{row['heads']} × {row['head_width']}",
            f"{row['context']:,}",
            f"{row['parameters']:,}",
            *map(format_size, row["bytes"].values()),
            f"{row['training_flops_per_token']:.2e}",
            f"{row['cache_bytes_per_token']:,} B",
            format_size(row["cache_bytes_at_context"]),
        )
    table_console().print(table)
