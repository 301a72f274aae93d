"""``lmsmith doctor``: what this machine can do, and what ``auto`` stands for on it."""

from __future__ import annotations

import shutil
from pathlib import Path

from lmsmith.cli.output import print_json
from lmsmith.core.format import format_size
from lmsmith.core.recipe import MachineConfig
from lmsmith.core.version import VERSION
from lmsmith.runs.stage_folder import advice_on_threads, describe_hardware, git_commit


def doctor(*, json: bool = False) -> None:
    """Show the hardware, the torch build, the compiler, and the choices made from them."""
    found = examine()
    if json:
        print_json(found)
        return
    hardware, machine = found["hardware"], found["machine"]
    assert isinstance(hardware, dict)
    assert isinstance(machine, dict)
    lines = {
        "lmsmith": f"{found['lmsmith']}{_in_brackets(found['git_commit'])}",
        "python": f"{hardware['python']} on {hardware['platform']}",
        "processor": f"{hardware['cpu']}, {hardware['cores']} cores",
        "instructions": ", ".join(hardware["flags"]) or "none of those that matter here",
        "memory": format_size(hardware["memory_bytes"]),
        "free disk here": format_size(float(str(found["free_disk_bytes"]))),
        "torch": f"{found['torch']}, {machine['threads']} threads",
        "load": found["advice_on_threads"] or "enough cores are free",
        "C++ compiler": machine["compiler"] or "none: models run eager, which is slower",
        "precision": _precision(found, machine),
        "compiling": "where it pays within the run" if machine["compile"] else "off",
    }
    width = max(len(name) for name in lines)
    for name, text in lines.items():
        print(f"{name:<{width}}  {text}")


def examine() -> dict[str, object]:
    """All that doctor knows, JSON-able; measures the matrix peak, which takes a second."""
    import torch

    from lmsmith.training.machine import measure_matrix_peak, prepare_process

    machine = prepare_process(MachineConfig())
    return {
        "lmsmith": VERSION,
        "git_commit": git_commit(),
        "hardware": describe_hardware(),
        "free_disk_bytes": shutil.disk_usage(Path.cwd()).free,
        "torch": torch.__version__,
        "advice_on_threads": advice_on_threads(),
        "machine": machine.as_dict(),
        "peak_gflops": {
            precision: round(measure_matrix_peak(precision), 1) for precision in ("fp32", "bf16")
        },
    }


def _precision(found: dict[str, object], machine: dict[str, object]) -> str:
    peaks = found["peak_gflops"]
    assert isinstance(peaks, dict)
    return (
        f"{machine['precision']} (matrix peak measured now: bf16 {peaks['bf16']:,.0f}, "
        f"fp32 {peaks['fp32']:,.0f} GFLOP/s)"
    )


def _in_brackets(text: object) -> str:
    return f" ({text})" if text else ""
