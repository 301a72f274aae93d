"""``lmsmith doctor``: what this machine can do, and what ``auto`` stands for on it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lmsmith.cli.output import print_json
from lmsmith.core.format import format_size
from lmsmith.core.recipe import MachineConfig
from lmsmith.core.version import VERSION
from lmsmith.runs.stage_folder import advice_on_threads, describe_hardware, git_commit


def doctor(*, gpu: bool = False, json: bool = False) -> None:
    """Show the hardware, the torch build, the compiler, and the choices made from them.

    Args:
        gpu: Measure the GPU instead: products, training and writing of GPT-2's smallest model, and
            whether it agrees with the processor. Without a GPU it says why there is none.
        json: Print one JSON object on standard output, and nothing else there.
    """
    if gpu:
        _gpu(json)
        return
    import torch

    from lmsmith.device import available_devices, is_host
    from lmsmith.evaluation.sandbox.programs import describe_sandbox
    from lmsmith.generation.machine import measured_precision
    from lmsmith.generation.native.library import describe_kernels
    from lmsmith.training.machine import measure_matrix_peak, prepare_process

    machine, commit = prepare_process(MachineConfig()), git_commit()
    hardware: dict[str, Any] = describe_hardware()
    free, advice = shutil.disk_usage(Path.cwd()).free, advice_on_threads()
    sandbox, kernels = describe_sandbox(), describe_kernels()
    reading = measured_precision(machine.precision) if is_host(machine.place) else None
    reads_in = reading.precision if reading else machine.precision
    # Measuring the peaks takes a second.
    peaks = {each: round(measure_matrix_peak(each), 1) for each in ("fp32", "bf16")}
    devices = available_devices()
    if json:
        print_json({
            "devices": devices,
            "lmsmith": VERSION,
            "git_commit": commit,
            "hardware": hardware,
            "free_disk_bytes": free,
            "torch": torch.__version__,
            "advice_on_threads": advice,
            "machine": vars(machine),
            "peak_gflops": peaks,
            "sandbox": sandbox,
            "kernels": kernels,
            "reading_precision": reads_in,
            "reading_measured": asdict(reading) if reading else None,
        })  # fmt: skip
        return
    lines = {
        "lmsmith": f"{VERSION} ({commit})" if commit else VERSION,
        "python": f"{hardware['python']} on {hardware['platform']}",
        "processor": f"{hardware['cpu']}, {hardware['cores']} cores",
        "instructions": ", ".join(hardware["flags"]) or "none of those that matter here",
        "memory": format_size(hardware["memory_bytes"]),
        "free disk here": format_size(free),
        "torch": f"{torch.__version__}, {machine.threads} threads",
        "devices": f"{', '.join(devices)}; models compute on {machine.device}",
        "load": advice or "enough cores are free",
        "C++ compiler": machine.compiler or "none: models run eager, which is slower",
        "kernels of generation": kernels,
        "precision": f"{reads_in} for writing, {machine.precision} for training (matrix peak "
        f"measured now: bf16 {peaks['bf16']:,.0f}, fp32 {peaks['fp32']:,.0f} GFLOP/s)",
        "speed of writing": str(reading) if reading else "not measured: a GPU's",
        "sandbox of code tasks": ", ".join(sandbox) or "none: code tasks cannot be run here",
        "compiling": "where it pays within the run" if machine.compile != "off" else "off",
    }
    _print_lines(lines)


def _gpu(json: bool) -> None:
    from lmsmith.gpu_check import check_gpu, describe_check, missing_gpu

    if reason := missing_gpu():
        print_json({"gpu": None, "reason": reason}) if json else print(f"skipped: {reason}")
        return
    found = check_gpu()
    print_json({"gpu": found}) if json else _print_lines(describe_check(found))


def _print_lines(lines: Mapping[str, str]) -> None:
    width = max(len(name) for name in lines)
    for name, text in lines.items():
        print(f"{name:<{width}}  {text}")
