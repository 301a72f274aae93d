"""The two ways a run ends early: a user's mistake, and an interruption."""

from __future__ import annotations


class UserError(Exception):
    """A mistake the user can mend: one message, exit code 2, no traceback.

    Args:
        problem: names the input and what was expected, e.g. ``"my.jsonl, line 3: no 'messages'"``.
        mend: what to do about it, in the imperative.
    """

    exit_code = 2

    def __init__(self, problem: str, mend: str = "") -> None:
        super().__init__(problem if not mend else f"{problem}\n  {mend}")
        self.problem = problem
        self.mend = mend


class Interrupted(Exception):
    """Raised after a SIGINT or SIGTERM, once everything worth keeping has been saved."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"interrupted by signal {signal_number}")
        self.exit_code = 128 + signal_number
