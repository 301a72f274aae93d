"""``lmsmith improve`` and ``simulate``, and versions of a model: lineage, promote, rollback."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from lmsmith import improvement
from lmsmith.cli.output import plain_table, table_console
from lmsmith.cli.parsing import printed
from lmsmith.core.format import format_duration
from lmsmith.core.terminal import in_one_line

if TYPE_CHECKING:
    from lmsmith.api import Recorded
    from lmsmith.catalogue.versions import Gate, Version
    from lmsmith.improve.prospect import Prospect

STYLES = {"passed": "green", "failed": "red", "not shown": "yellow"}


def _show(found: improvement.Improvement, *, dry_run: bool, data: tuple[str, ...]) -> None:
    if dry_run or found.version is None:
        print_prospect(found.prospect)
        return
    made = found.version
    print_gates(made)
    print(f"{made.word} is compared with {made.compared_with}")
    print(f"the page: {found.report}")
    if made.verdict == "refused":
        failed = ", ".join(gate.name for gate in made.gates if gate.state == "failed")
        print(f"{made.word} is refused: {failed}. It is kept, and not offered to anybody")
        return
    shown = [gate.name for gate in made.gates if gate.state == "not shown"]
    if {"tasks", "safety"}.intersection(shown):
        print(
            "to measure tasks in the next round, name them: --set gates.tasks='[\"TASK\"]', --set "
            "gates.safety='[\"TASK\"]' (lmsmith tasks ls; lmsmith improve --dry-run)"
        )
    print(
        f"{made.word} passed every gate that it needs"
        if made.verdict == "passed"
        else f"{made.word}: not shown to be better (not shown: {', '.join(shown)})"
    )
    if data:
        print(f"next: lmsmith chat {made.word}; lmsmith models promote {made.word}")
    else:
        print(
            f"next: lmsmith serve {made.name} shows both versions in a share of the turns, and "
            f"people's votes decide; lmsmith models lineage {made.name} shows them"
        )


improve = printed(improvement.improve, _show, quiet_json=False)


def print_prospect(found: Prospect) -> None:
    """What there is to learn from, and the stages that would run."""
    summary = found.summary
    table = plain_table("judgements", "")
    for kind, count in summary.counts.items():
        table.add_row(kind.replace("_", " ") + "s" * (count != 1), f"{count:,}")
    table.add_row("compared pairs", f"{summary.pairs:,}")
    table.add_row("new since the last version", f"{summary.new:,}")
    table_console().print(table)
    people = len(summary.people)
    if summary.one_person:
        print("one person judged: this is one person's taste")
    elif people:
        print(f"{people} people judged")
    if summary.agreement is not None:
        agreed = summary.agreement
        print(
            f"two people agree on {agreed.value:.0%} of the pairs that both judged (95 %: "
            f"{agreed.low:.0%} to {agreed.high:.0%}): a perfect judge shows as {agreed.value:.0%}"
        )
    else:
        print("no two people judged the same responses: nothing says how far people agree")
    for flaw, count in found.left_out.items():
        print(f"pairs {flaw}, left out: {count:,}")
    if summary.duplicates:
        print(f"{summary.duplicates:,} judgements are repeated, and count once")
    for person, (share, counted) in summary.capped.items():
        name = in_one_line(found.names.get(person, person))
        print(f"{name} made {share:.0%} of the rankings, which count as {counted:.0%} of them")
    for person, count in summary.demonstrations_left_out.items():
        name = in_one_line(found.names.get(person, person))
        print(f"{name}: about {count:,} demonstrations are left out, above one person's share")
    for person, count in summary.prompts_left_out.items():
        name = in_one_line(found.names.get(person, person))
        print(f"{name}: about {count:,} prompts are left out, above one person's share")
    for person, count in summary.bursts.items():
        name = in_one_line(found.names.get(person, person))
        option = f"--exclude {shlex.quote(name)}"
        print(f"{name}: {count} judgements within a minute; {option} leaves them out")
    for line in summary.too_little:
        print(f"too little: {line}")
    start = f"version {found.parent}" if found.parent else "its first version"
    print(f"{found.name} starts from {start}; stages: {', '.join(found.stages)}")
    print(f"gates measure {_tasks_of_gates(found)}")
    if found.current != found.parent:
        print(
            f"version {found.parent} is the newest that the excluded had no part in; the gates "
            f"compare the candidate with version {found.current}, which is promoted"
        )


def _tasks_of_gates(found: Prospect) -> str:
    """The tasks that the gates measure, and how to name those that they lack."""
    from lmsmith.improve.tasks import tasks_here

    named = {"tasks": found.tasks, "safety": found.safety}
    words = [f"{kind} by {', '.join(each)}" for kind, each in named.items() if each]
    for kind, example in (("tasks", "arithmetic/2d_plus"), ("safety", "refusal/harmful")):
        if not named[kind]:
            words.append(f"no {kind}: name some by --set gates.{kind}='[\"{example}\"]'")
    here = "" if all(named.values()) else f" (data is here of {', '.join(tasks_here())})"
    return "; ".join(words) + here


def print_gates(made: Version) -> None:
    """Each gate with its figure, interval and margin."""
    from rich.text import Text

    table = plain_table(
        "gate", "", "figure", "95 %", "margin", "reason", left=("gate", "", "reason")
    )
    for gate in made.gates:
        state = Text(gate.state, style=STYLES[gate.state])
        table.add_row(gate.name, state, *gate_figures(gate), gate.reason)
    table_console().print(table)


def gate_figures(gate: Gate) -> tuple[str, str, str]:
    """Figure, interval and margin; empty where there is none."""
    value, low, high, margin = (
        "" if number is None else f"{number:.3g}"
        for number in (gate.value, gate.low, gate.high, gate.margin)
    )
    return value, f"{low} to {high}" if low else "", margin


def _show_lineage(found: Recorded) -> None:
    record: dict[str, Any] = found.record
    table = plain_table("version", "from", "made", "people", "verdict", "win rate", "")
    trial = record["trial"]
    for each in record["versions"]:
        mark = "promoted" if each["number"] == record["promoted"] else ""
        mark = "on trial" if trial and trial["candidate"] == each["number"] else mark
        win_rate = each["figures"].get("gates.win_rate")
        table.add_row(
            each["word"],
            _made_from(each),
            each["created"],
            f"{len(each['learnt']['people']):,}",
            each["verdict"],
            "" if win_rate is None else f"{win_rate:.1%}",
            mark,
        )
    table_console().print(table)
    for each in record["promotions"]:
        reason = f": {each['reason']}" if each["reason"] else ""
        line = f"{each['date']}  {each['action']} {each['version']} by {each['by']}{reason}"
        print(in_one_line(line))
    for each in record["refusals"]:
        pair = f"{each['candidate']} instead of {each['current']}"
        line = f"{each['date']}  votes did not promote {pair} ({each['outcome']}): {each['reason']}"
        print(in_one_line(line))
    for word, count in record["deleted"].items():
        people = "person who was" if count == 1 else "people who were"
        print(f"{word} was made with the words of {count:,} {people} deleted since")
    if votes := record.get("votes"):
        print(votes_line(votes, "the candidate"))


def votes_line(votes: dict[str, Any], candidate: str) -> str:
    """The state of the test on a vote."""
    share, waiting = votes["share"], votes["waiting"]
    above = f" ({waiting:,} more wait: above one person's share)" if waiting else ""
    return (
        f"{votes['votes']:,} votes of {votes['people']:,} people: {share['value']:.1%} for "
        f"{candidate} ({share['low']:.1%} to {share['high']:.1%} at any time), e-value "
        f"{votes['e_value']:.3g}: {votes['outcome']}{above}"
    )


def _made_from(version: dict[str, Any]) -> str:
    """Parents of a version, and the version its gates compare it with where that is another."""
    parents, against = version["parents"], version["against"]
    beside = f", compared with {against}" if against and [against] != list(parents) else ""
    return (", ".join(map(str, parents)) or version["source"]) + beside


lineage = printed(improvement.lineage, _show_lineage)


def _show_promoted(made: Version) -> None:
    print(f"{made.name} is {made.word} now ({made.path})")


promote = printed(improvement.promote, _show_promoted)
rollback = printed(improvement.rollback, _show_promoted)


def _show_simulation(found: improvement.Simulation) -> None:
    record = found.record
    figures = ("round", "gold reward", "rise", "low end", "votes for it", "low end", "votes")
    others = ("judgements", "agreement", "KL", "tokens", "reward", "verdict", "time")
    table = plain_table(*figures, *others, left=("verdict",))
    table.add_row("0", f"{record['start']['gold_reward']:.3f}")
    for row in record["rounds"]:
        table.add_row(
            str(row["round"]),
            f"{row['gold_reward']:.3f}",
            f"{row['gold_reward_rise']:+.3f}",
            f"{row['gold_reward_low']:+.3f}",
            *("" if row[n] is None else f"{row[n]:.1%}" for n in ("win_rate", "win_rate_low")),
            f"{row['votes']:,}",
            f"{row['judgements']:,}",
            "" if row["agreement"] is None else f"{row['agreement']:.1%}",
            f"{row['kl']:.2f}",
            f"{row['tokens']:.1f}",
            "" if row["reward"] is None else f"{row['reward']:+.3f}",
            row["verdict"],
            format_duration(row["seconds"]),
        )
    table_console().print(table)
    wanted, noise = record["labelers"]["wanted_agreement"], record["labelers"]["sigma"]
    print(
        f"labelers rank by gold reward + σε, σ = {', '.join(f'{each:.3g}' for each in noise)}: two "
        f"agree on {wanted:.0%} of the pairs of the first version's answers"
    )
    for line in record["findings"]:
        print(line)
    print(f"report: {found.report}")


simulate = printed(improvement.simulate, _show_simulation)
