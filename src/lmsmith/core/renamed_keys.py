"""Recipe keys of earlier versions, and what they are called now.

`lmsmith.core.config.unknown_key` makes the error that names the new key.
"""

from __future__ import annotations

from collections.abc import Mapping

RENAMED_KEYS: Mapping[str, tuple[str, ...]] = {
    "clip": ("clip_range",),
    "conversations": ("split", "max_conversations"),
    "discount": ("gamma",),
    "document_bytes": ("max_document_bytes",),
    "feed_forward": ("ffn_width",),
    "feed_forward_bias": ("ffn_bias",),
    "final": ("final_lr_fraction",),
    "history": ("overlap_fraction",),
    "inner_epochs": ("ppo_epochs",),
    "key_value_heads": ("kv_heads",),
    "maximum_prompt": ("max_prompt_tokens",),
    "maximum_response": ("max_new_tokens",),
    "maximum_tokens": ("max_length", "max_new_tokens"),
    "minimum_steps": ("min_steps",),
    "minimum_tokens": ("min_new_tokens",),
    "minimum_turns": ("min_turns",),
    "missing_end_penalty": ("missing_eos_penalty",),
    "most_prompts": ("max_prompts",),
    "prompts": ("max_prompts",),
    "query_key_value_bias": ("qkv_bias",),
    "rows_at_once": ("micro_batch_size",),
    "test": ("test_fraction",),
    "test_prompts": ("max_test_prompts",),
    "trace": ("gae_lambda",),
    "validation": ("validation_fraction",),
    "value_clip": ("value_clip_range",),
    "value_warmup": ("value_warmup_iterations",),
    "warmup": ("warmup_steps", "warmup_iterations"),
}
"""Keys before version 0.2, and what they are called now: the one that the settings have."""
