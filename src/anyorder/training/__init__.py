"""Training: transformers' `Trainer` with the losses of this package."""

from anyorder.training.causal import train_causal

__all__ = ["train_causal"]
