"""``lmsmith plan``: what it prints."""

from __future__ import annotations

from lmsmith.cli.output import plain_table, table_console
from lmsmith.cli.parsing import printed
from lmsmith.core.format import format_duration, format_size
from lmsmith.planning import SECONDS_A_DAY, Gpus, Plan, StagePlan
from lmsmith.planning import plan as plan_training


def _show(found: Plan) -> None:
    gpus = found.gpus
    size = format_size(gpus.memory_bytes)
    print(f"{found.name} on {gpus.count} × {gpus.name}, {size} each; a GPU holds:")
    kinds = [kind for kind in found.stages[0].memory.by_kind() if _any(found, kind)]
    table = plain_table("", *(each.stage for each in found.stages))
    for kind in kinds:
        sizes = (getattr(each.memory, kind) for each in found.stages)
        table.add_row(kind, *(format_size(size) if size else "—" for size in sizes))
    table.add_row("total", *(format_size(each.memory.total) for each in found.stages))
    table.add_row("fits", *("yes" if each.fits else "no" for each in found.stages))
    table_console().print(table)
    for each in found.stages:
        print(_sentence(each, gpus, found.share))


def _any(found: Plan, kind: str) -> bool:
    return any(getattr(each.memory, kind) for each in found.stages)


def _sentence(stage: StagePlan, gpus: Gpus, share: float) -> str:
    """A stage in words: what it does on a GPU, how to make it fit, time and cost."""
    divided = ", divided among the GPUs (FSDP2)" if stage.sharded else ""
    words = [f"{stage.parameters:,} parameters{divided}, {stage.rows} rows of {stage.length:,}"]
    if stage.tokens_per_second is not None and stage.days is not None:
        speed, days = stage.tokens_per_second, stage.days
        bound = f"{share:.0%} of the peak"
        if stage.bound_by == "launches":
            bound = (
                "roughly: operations so small take longer to start than to compute; more rows at a "
                "time or machine.compile=on are faster"
            )
        words.append(
            f"{stage.tokens:,} tokens at {speed:,.0f} a second ({bound}): {_time(days)}"
            + (f", at a cost of {stage.cost:,.2f}" if stage.cost is not None else "")
        )
    if not stage.fits and stage.fixes:
        words.append("it fits with " + " ".join(f"--set {fix}" for fix in stage.fixes))
    elif not stage.fits and stage.gpus_needed:
        least = "with the settings that take least memory"
        words.append(f"{least} it needs {stage.gpus_needed:,} such GPUs")
    elif not stage.fits:
        words.append("it fits on no number of such GPUs: take larger ones, or a smaller model")
    return f"{stage.stage}: {'; '.join(words)}"


def _time(days: float) -> str:
    return f"{days:,.1f} days" if days >= 1 else format_duration(days * SECONDS_A_DAY)


plan = printed(plan_training, _show)
