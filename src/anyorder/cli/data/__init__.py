"""Data to train on: what is in them, and from other forms to ours."""

SUBCOMMANDS = ("inspect", "convert", "tokenizer", "paraphrase")
