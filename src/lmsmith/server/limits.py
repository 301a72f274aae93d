"""What one client may ask of the server at most."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds; what is beyond them is refused with a message that names them.

    Attributes:
        streams: replies written together, of each model.
        queue: requests that wait; beyond it, 429.
        seconds: longest time from question to last token.
        body_bytes: of a request.
        samples: replies to one prompt (``n``).
        prompts: of one completion request.
        tokens: longest reply; 0 is the context.
        unread_seconds: that a reply in a conversation is written on while nobody reads it.
        drain_seconds: that replies under way have to end, once the server is told to.
    """

    streams: int = 64
    queue: int = 128
    seconds: float = 600.0
    body_bytes: int = 4 << 20
    samples: int = 16
    prompts: int = 256
    tokens: int = 0
    drain_seconds: float = 30.0
    unread_seconds: float = 300.0

    def check(self) -> list[str]:
        """What is out of range, a line each."""
        least = {
            "streams": 1, "queue": 1, "seconds": 0.001, "body_bytes": 1, "samples": 1,
            "prompts": 1, "tokens": 0, "drain_seconds": 0,
            "unread_seconds": 0,
        }  # fmt: skip
        return [
            f"{name} = {getattr(self, name)}: {low:g} or more"
            for name, low in least.items()
            if not getattr(self, name) >= low
        ]
