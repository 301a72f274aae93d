"""Controllers of the KL coefficient β: fixed, proportional, and PPO-penalty's band."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Control = Literal["fixed", "adaptive", "band"]


@dataclass
class KLController:
    """β and the rule that moves it after each iteration.

    Attributes:
        coefficient: β now.
        control: ``fixed`` leaves it; ``adaptive`` steers the measured KL to ``target`` (Ziegler
            et al. 2019, section 2.2); ``band`` keeps it between ``low`` and ``high``, doubling β
            above and halving it below (PPO-penalty, Schulman et al. 2017, section 4).
        target: KL in nats per response, for ``adaptive``.
        horizon: episodes over which ``adaptive`` corrects a 100 % error.
        low, high: KL in nats per response, for ``band``.
    """

    coefficient: float
    control: Control = "fixed"
    target: float = 6.0
    horizon: int = 10_000
    low: float = 0.0
    high: float = float("inf")

    def update(self, kl: float, episodes: int) -> None:
        """Move β after ``episodes`` responses whose mean KL was ``kl`` nats.

        ``adaptive``: e = clip(KL/target − 1, −0.2, 0.2); β ← β (1 + e · episodes / horizon).
        """
        if self.control == "adaptive":
            error = min(0.2, max(-0.2, kl / self.target - 1.0))
            self.coefficient *= 1.0 + error * episodes / self.horizon
        elif self.control == "band":
            if kl > self.high:
                self.coefficient *= 2.0
            elif kl < self.low:
                self.coefficient /= 2.0

    def state_dict(self) -> dict[str, Any]:
        return {"coefficient": self.coefficient}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.coefficient = state["coefficient"]
