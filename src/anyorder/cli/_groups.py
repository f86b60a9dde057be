"""Under which heading the help of a command has each option, and which commands write a place that may be taken."""

from __future__ import annotations

from collections.abc import Sequence

GROUPS: dict[str, Sequence[str]] = {
    "what is read": (
        "model", "tokenizer", "revision", "dataset", "split", "form", "relations", "prompts_file", "interactive",
        "image", "max_samples", "num_paraphrases", "indices", "counts", "shots", "shots_from", "instruction", "chat",
        "system", "prefix", "suffix", "separator", "kind", "documents", "length", "template", "unpacked",
        "last_answer_only", "vocab_size", "mask_token_id", "gap", "texts", "draws", "tasks", "include_path",
    ),
    "what is written": (
        "order", "orders", "method", "methods", "positions", "correction", "weights", "keep", "max_new_tokens",
        "gap_tokens", "stop", "count", "num_samples", "mask_samples",
    ),
    "heads, experts, width": ("kv_heads", "pooling", "experts", "expert_sample", "widen"),
    "how tokens are chosen": (
        "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "num_beams", "seed",
    ),
    "diffusion": (
        "preset", "sampling_method", "remasking_strategy", "steps", "block_length", "cfg_scale", "cache", "threshold",
        "factor",
    ),
    "speed and memory": ("dtype", "device", "attention", "batch_size", "compile", "draft", "tensor_parallel"),
    "how it is served": ("host", "port", "api_key", "name", "max_running", "max_queued", "timeout", "open"),
    "what is printed and kept": (
        "stream", "show", "delay", "json", "trace", "output", "html", "plot", "examples", "repeats", "samples", "drift",
        "use_cache", "log_samples", "force",
    ),
}  # fmt: skip
"""Of commands with many options; `pretrain` and `sft` have those of their settings."""

TRAINING: dict[str, Sequence[str]] = {
    "what is trained, on what": (
        "data", "validation", "output", "init", "tokenizer", "vocab_size", "width", "layers", "heads", "shape",
        "length", "rope_scaling", "documents", "template", "skip_bad_lines", "last_answer_only", "streaming",
        "cache_dir",
    ),
    "what is learnt": (
        "objective", "shares", "mixture_by", "order_schedule", "predicted", "block_length", "mask_token", "times",
        "eps", "random_length_prob", "shifted", "opening_steps",
    ),
    "how": (
        "steps", "epochs", "batch_size", "accumulation", "learning_rate", "warmup", "schedule", "weight_decay", "clip",
        "balance_loss", "balance_bias",
        "precision", "activation_checkpointing", "tensor_parallel", "fsdp", "lora_rank", "seed", "workers",
    ),
    "what is printed and kept": (
        "log_every", "evaluate_every", "save_every", "keep", "tensorboard", "wandb", "resume", "force",
    ),
}  # fmt: skip

TRAININGS = ("pretrain", "sft")
"""The commands whose options are those of a training."""

REFUSED: dict[str, Sequence[str]] = {
    "sft": ("vocab_size", "width", "layers", "heads", "shape", "random_length_prob"),
}
"""Options of a training that a command always refuses, so that its help leaves them out."""

NEEDED: dict[str, Sequence[str]] = {"sft": ("init",)}
"""Options that a command needs, although their default is None."""

FEW = 8
"""So many options need no headings."""

OVERWRITE: dict[str, Sequence[str]] = {
    "generate": ("output", "trace"),
    "pretrain": ("output",),
    "sft": ("output",),
    "configs": ("folder",),
    "convert": ("target",),
    "bench": ("output",),
    "data convert": ("target",),
    "data tokenizer": ("target",),
    "data paraphrase": ("output",),
    "fuse run": ("output",),
    "fuse compare": ("output",),
    "inspect replay": ("html",),
    "inspect attention": ("plot",),
    "inspect compare": ("json",),
    "evaluate tasks": ("output",),
}
"""Of each command that takes `--force`, the options or words whose places it then overwrites."""
