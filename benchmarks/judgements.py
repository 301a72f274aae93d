"""What a model's own features tell about people's judgements: ``python benchmarks/judgements.py``.

The head of a reward model is fitted to the model as it is, each pair is judged by a head that was
fitted without its prompt, and the share of pairs ordered as people did stands beside that of rules
that read nothing: the longer response, and the likelier one by the same model.
"""

from __future__ import annotations

import json as json_module
import random
import time
from collections import Counter
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from lmsmith.catalogue.reading import read_model
from lmsmith.catalogue.resolve import resolve
from lmsmith.comparison.replies import accuracy_beside_rules
from lmsmith.core.recipe import MachineConfig
from lmsmith.corpus.judgements import RANKED
from lmsmith.corpus.rows import Ranking
from lmsmith.improve.prospect import Sources
from lmsmith.models.decoder import Decoder
from lmsmith.rlhf.head import fit_to_features
from lmsmith.rlhf.objective import correct_pairs
from lmsmith.rlhf.ranking import (
    EncodedRanking,
    candidate_batch,
    encode_rankings,
    join_rankings,
    score_table,
    sums_by_prompt,
)
from lmsmith.statistics.intervals import bootstrap_ratio
from lmsmith.training.machine import ResolvedMachine, evaluation_mode, prepare_process

Count = Annotated[int, tyro.conf.arg(metavar="N")]


def measure(model: str, data: str, limit: int, max_length: int, threads: int) -> dict[str, Any]:
    """Figures of one file of judgements.

    Args:
        limit: most prompts, drawn at random; 0 takes all.
        max_length: most tokens of a prompt and a response.
    """
    began = time.perf_counter()
    machine = prepare_process(MachineConfig(threads=threads))
    read = read_model(resolve(model).path)
    judged = [each for each in Sources(data=(data,)).judged.judgements if each.kind in RANKED]
    prompts = sorted({json_module.dumps(each.prompt) for each in judged})
    random.Random(0).shuffle(prompts)
    kept = set(prompts[: limit or None])
    rows = [
        Ranking(each.id, each.prompt, each.responses, each.ranks)
        for each in judged
        if json_module.dumps(each.prompt) in kept
    ]
    counts: Counter[str] = Counter()
    rankings, _ = encode_rankings(read.tokenizer, rows, max_length, counts)
    read.decoder.attend_explicitly()
    joined = join_rankings(rankings)
    read_rows = [_read(read.decoder, row, machine) for row in joined.rows]
    places = list(zip(joined.row_of, joined.columns, strict=True))
    fitted = fit_to_features(rankings, [read_rows[row][0][columns] for row, columns in places])
    total = [[read_rows[row][1][column] for column in columns] for row, columns in places]
    longer = [[float(len(response)) for response in each.responses] for each in rankings]
    mean = [[t / n for t, n in zip(*each, strict=True)] for each in zip(total, longer, strict=True)]
    correct_b, pairs_b = _by_prompt(rankings, fitted.scores)
    rules = {"longer": longer, "likelier_total": total, "likelier_per_token": mean}
    right = {name: _by_prompt(rankings, scores)[0] for name, scores in rules.items()}
    return {
        "data": data,
        "prompts": len(pairs_b),
        "pairs": int(pairs_b.sum()),
        "too_long": counts["too_long"],
        **bootstrap_ratio(correct_b, pairs_b, seed=0).named("accuracy"),
        **accuracy_beside_rules(correct_b, pairs_b, right, 0),
        "penalty": fitted.penalty,
        "tokens": sum(row.length for row in joined.rows),
        "seconds": time.perf_counter() - began,
    }


def _read(
    decoder: Decoder, row: EncodedRanking, machine: ResolvedMachine
) -> tuple[Any, list[float]]:
    """The last layer at each response's end, and the log-likelihood of the response, in nats."""
    batch = candidate_batch([row])
    with evaluation_mode(decoder), machine.autocast():
        hidden_td = decoder(batch.tokens_bt, batch.positions_bt, batch.mask_bts)[0].float()
        sums, start = [], len(row.prompt)
        for response in row.responses:
            before = [len(row.prompt) - 1, *range(start, start + len(response) - 1)]
            logits_tv = hidden_td[before] @ decoder.unembedding_weight.float().T
            found_t = logits_tv.log_softmax(-1)[range(len(response)), response]
            sums.append(float(found_t.sum()))
            start += len(response)
        return hidden_td[batch.ends_bk[0]].double().numpy(), sums


def _by_prompt(rankings: Any, scores: Any) -> Any:
    """Right pairs and all pairs of each prompt: its pairs are no independent draws."""
    found = correct_pairs(*score_table(rankings, scores))
    return tuple(sums_by_prompt(rankings, values_b) for values_b in found)


def main(
    model: str,
    data: Annotated[list[str], tyro.conf.arg(metavar="FILE")],
    limit: Count = 0,
    max_length: Count = 1024,
    threads: Count = 0,
    json: bool = False,
) -> int:
    """Accuracy of a fitted head on people's judgements, against length and likelihood.

    Example: python benchmarks/judgements.py --model smollm2.gguf --data hh.jsonl.gz

    Args:
        model: Any model, by name or path.
        data: Files of judgements, as `lmsmith improve --data` reads them.
        limit: Most prompts of each file, drawn at random; 0 takes all.
        max_length: Most tokens of a prompt and a response.
        threads: Of the processor; 0 takes all cores.
        json: Print one JSON object instead of the table.
    """
    found = [measure(model, each, limit, max_length, threads) for each in data]
    if json:
        print(json_module.dumps({"judgements": found}, indent=2))
        return 0
    table = Table(
        "data", "prompts", "pairs", "head", "95 %", "longer", "likelier", "above the best rule"
    )
    for row in found:
        table.add_row(
            row["data"].rpartition("/")[2],
            f"{row['prompts']:,}",
            f"{row['pairs']:,}",
            f"{row['accuracy']:.1%}",
            f"{row['accuracy_low']:.1%} to {row['accuracy_high']:.1%}",
            f"{row['longer_wins_accuracy']:.1%}",
            f"{row['likelier_wins_accuracy']:.1%}",
            f"{row['accuracy_above_rules']:+.1%} ({row['accuracy_above_rules_low']:+.1%} to "
            f"{row['accuracy_above_rules_high']:+.1%})",
        )
    Console().print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(tyro.cli(main))
