"""The two ways a run ends early: a user's mistake, and an interruption."""

from __future__ import annotations


class UserError(Exception):
    """A mistake the user can fix: one message, exit code 2, no traceback.

    Args:
        problem: names the input and what was expected, e.g. ``"my.jsonl, line 3: no 'messages'"``.
        fix: what to do about it, in the imperative.
    """

    exit_code = 2

    def __init__(self, problem: str, fix: str = "") -> None:
        super().__init__(problem if not fix else f"{problem}\n  {fix}")
        self.problem = problem
        self.fix = fix


class Interrupted(Exception):
    """Raised after a SIGINT or SIGTERM, once everything worth keeping has been saved."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"interrupted by signal {signal_number}")
        self.exit_code = 128 + signal_number
