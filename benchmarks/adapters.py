"""Many streams over several adapters of one base in one engine, beside the base and beside PEFT.

    python benchmarks/adapters.py --model smollm2-135m --streams 16 --adapters 4

The adapters are random, of one rank, on every linear layer, and every side reads the same PEFT
folders. Each stream continues its own random tokens, greedy, and all begin at the same time; the
streams are divided among the adapters. The sides take turns, and each one's fastest counts:

- ours, without adapters, and with them in one batch;
- transformers with PEFT, the adapters in one batch (`generate(adapter_names=…)`), and one adapter
  after the other (`set_adapter`), each with its share of the streams.

All are in bf16, with as many threads. It needs the extra dev (peft).
"""

from __future__ import annotations

import json as json_module
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from held import Instructions, describe, hold
from rich.console import Console
from rich.table import Table

Count = Annotated[int, tyro.conf.arg(metavar="N")]
Side = Callable[[list[list[int]], list[str], int], None]

BASE, MIXED = "lmsmith, base alone", "lmsmith, adapters in one batch"
PEFT_MIXED, PEFT_SWITCHED = "PEFT, adapters in one batch", "PEFT, one adapter after the other"


def main(
    model: str = "smollm2-135m",
    streams: Count = 16,
    adapters: Count = 4,
    rank: Count = 16,
    tokens: Count = 48,
    prompt: Count = 32,
    rounds: Count = 3,
    threads: Count = 0,
    peer: bool = True,
    instructions: Instructions = "native",
    json: bool = False,
) -> int:
    """Tokens a second and memory of several adapters over one base.

    Args:
        model: A name or a path, as of `lmsmith serve`.
        streams: How many write at the same time.
        adapters: How many there are.
        rank: Of each adapter.
        tokens: Of every reply.
        prompt: Tokens of every prompt.
        rounds: How often each side has its turn.
        threads: Of every side; all cores if 0.
        peer: Ask PEFT too.
        instructions: What every side may use: avx2, avx512, or what the processor has.
        json: Print one JSON object instead of the table.
    """
    held = hold(instructions)
    threads = threads or os.cpu_count() or 1
    names = [f"adapter{n}" for n in range(adapters)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        vocabulary = write_folders(model, names, rank, folder)
        sides, bytes_ = our_sides(folder, names, threads)
        if peer:
            theirs, their_bytes = their_sides(folder, names)
            sides, bytes_ = {**sides, **theirs}, {**bytes_, **their_bytes}
        chosen = [names[n % adapters] for n in range(streams)]
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for number in range(-1, rounds):  # the first turn warms up
            prompts = random_prompts(streams, prompt, vocabulary, seed=number)
            for side, write in sides.items():
                started = time.perf_counter()
                write(prompts, chosen, 4 if number < 0 else tokens)
                if number >= 0:
                    seconds[side].append(time.perf_counter() - started)
    rates = {side: streams * tokens / min(each) for side, each in seconds.items()}
    result: dict[str, Any] = {
        "model": model, "streams": streams, "adapters": adapters, "rank": rank, "tokens": tokens,
        "prompt": prompt, "tokens_per_second": rates, "weight_bytes": bytes_,
        "ratio": {side: rates[MIXED] / rate for side, rate in rates.items() if side != MIXED},
        "machine": describe(held, threads, ["transformers"] if peer else []),
    }  # fmt: skip
    if peer:
        result["machine"]["versions"]["peft"] = metadata.version("peft")
    if json:
        print(json_module.dumps(result, indent=2))
    else:
        print_table(result)
    return 0


def random_prompts(count: int, length: int, vocabulary: int, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed + 1)
    return torch.randint(100, vocabulary, (count, length), generator=generator).tolist()


def write_folders(model: str, names: list[str], rank: int, folder: Path) -> int:
    """Write the base as transformers reads it, in bf16, and PEFT's folders of random adapters.

    Returns:
        The size of the vocabulary.
    """
    from lmsmith.catalogue.export import export
    from lmsmith.catalogue.reading import read_model
    from lmsmith.models.adapters import AdapterConfig, adapt, adapted_layers
    from lmsmith.models.interop.peft import write_peft_folder

    found = read_model(model)
    export(found, folder / "base", "hf", "bf16")
    config = AdapterConfig(rank, 2.0 * rank)
    adapt(found.decoder, config, torch.float32, seed=0)
    generator = torch.Generator().manual_seed(0)
    for name in names:
        with torch.no_grad():
            for _, layer in adapted_layers(found.decoder):
                layer.down.normal_(0, layer.in_features**-0.5, generator=generator)
                layer.up.normal_(0, 0.02, generator=generator)
        state = {k: v for k, v in found.decoder.state_dict().items() if k.endswith(("down", "up"))}
        (folder / name).mkdir()
        base = str(folder / "base")
        write_peft_folder(folder / name, base, found.decoder.config, config, state)
    return found.tokenizer.vocabulary_size


def our_sides(
    folder: Path, names: list[str], threads: int
) -> tuple[Mapping[str, Side], dict[str, int]]:
    from lmsmith.core.recipe import MachineConfig
    from lmsmith.generation.engine import Engine, answer
    from lmsmith.generation.machine import prepare_reading
    from lmsmith.generation.requests import Request
    from lmsmith.generation.settings import SamplingSettings
    from lmsmith.server.models import Loader, read_models

    words = [f"{name}={folder / name}" for name in ("base", *names)]
    machine = prepare_reading(MachineConfig(threads=threads, precision="bf16"))
    served = Loader(machine, "model", 0, 64).first(read_models(words))
    model = served[0].scheduler.model

    def write(prompts: list[list[int]], adapters: list[str], tokens: int) -> None:
        sampling = SamplingSettings(max_new_tokens=tokens, temperature=0)
        pairs = zip(prompts, adapters, strict=True)
        answer(Engine(model), [Request(each, sampling, adapter=name) for each, name in pairs])

    sides = {
        BASE: lambda prompts, names, tokens: write(prompts, [""] * len(names), tokens),
        MIXED: write,
    }
    sizes = {BASE: served[0].weight_bytes, MIXED: sum(each.weight_bytes for each in served)}
    return sides, sizes


def their_sides(folder: Path, names: list[str]) -> tuple[Mapping[str, Side], dict[str, int]]:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.bfloat16)
    size = sum(each.nbytes for each in base.parameters())
    model = PeftModel.from_pretrained(base, folder / names[0], adapter_name=names[0])
    for name in names[1:]:
        model.load_adapter(folder / name, adapter_name=name)
    model.to(torch.bfloat16).eval()

    @torch.inference_mode()
    def generate(prompts: list[list[int]], tokens: int, **more: Any) -> None:
        given = torch.tensor(prompts)
        written = model.generate(
            input_ids=given, attention_mask=torch.ones_like(given), do_sample=False,
            min_new_tokens=tokens, max_new_tokens=tokens, pad_token_id=0, **more,
        )  # fmt: skip
        if written.shape[1] != given.shape[1] + tokens:
            sys.exit("a reply of PEFT's has another length")

    def mixed(prompts: list[list[int]], adapters: list[str], tokens: int) -> None:
        generate(prompts, tokens, adapter_names=adapters)

    def switched(prompts: list[list[int]], adapters: list[str], tokens: int) -> None:
        for name in dict.fromkeys(adapters):
            model.set_adapter(name)
            own = [each for each, of in zip(prompts, adapters, strict=True) if of == name]
            generate(own, tokens)

    whole = sum(each.nbytes for each in model.parameters())
    sizes = {"transformers, base alone": size, PEFT_MIXED: whole}
    return {PEFT_MIXED: mixed, PEFT_SWITCHED: switched}, sizes


def print_table(result: dict[str, Any]) -> None:
    table = Table(
        title=f"{result['model']}: {result['streams']} streams, {result['adapters']} adapters of "
        f"rank {result['rank']}, {result['machine']['threads']} threads"
    )
    for column in ("side", "tokens/s", "ours over it", "weights"):
        table.add_column(column, justify="left" if column == "side" else "right")
    for side, rate in result["tokens_per_second"].items():
        ratio, size = result["ratio"].get(side), result["weight_bytes"].get(side)
        table.add_row(
            side,
            f"{rate:.1f}",
            f"{ratio:.2f}" if ratio else "",
            f"{size / 1e6:.0f} MB" if size else "",
        )
    Console().print(table)
    machine = result["machine"]
    print(f"{machine['cpu']}, {machine['instructions']}, {machine['date']}; {machine['versions']}")


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
