"""What is learnt: one file per objective, each of which turns a batch of samples into a lesson for the network."""

from anyorder.objectives.autoregressive import Autoregressive
from anyorder.objectives.lesson import Batch, Lesson, Objective, summed_loss

__all__ = ["Autoregressive", "Batch", "Lesson", "Objective", "summed_loss"]
