"""Prints what models write, as JSON: run by a Python in which a wheel is installed.

Arguments: a file with prompt and models, or none.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

torch.set_num_threads(1)

import lmsmith  # noqa: E402
from lmsmith.core.recipe import MachineConfig  # noqa: E402
from lmsmith.generation.native.library import describe_kernels  # noqa: E402
from lmsmith.generation.native.operations import best_kernels  # noqa: E402

found: dict[str, object] = {
    "package": str(Path(lmsmith.__file__).parent),
    "torch": torch.__version__,
    "kernels": describe_kernels(),
    "operations": type(best_kernels()).__name__,
}
order = json.loads(Path(sys.argv[1]).read_text("utf-8"))
for name, (path, precision) in order["models"].items():
    machine = MachineConfig(precision=precision, threads=1)
    model = lmsmith.load(path, machine=machine, weights="file")
    settings = model.settings(order["tokens"], 0.0)
    settings = replace(settings, stop_tokens=(), log_probs=True, top_log_probs=2)
    reply = model.whole_reply(order["prompt"], settings)
    found[name] = [
        {"token": each.token, "log_prob": each.log_prob, "top": [p for _, p in each.top]}
        for each in reply.log_probs
    ]
print(json.dumps(found))
