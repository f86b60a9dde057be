"""Training objectives: one file for each, which turns a batch of samples into training inputs."""

from anyorder.objectives.autoregressive import Autoregressive
from anyorder.objectives.block_diffusion import BlockDiffusion
from anyorder.objectives.inputs import Batch, Objective, TrainingInputs
from anyorder.objectives.loss import predictions, summed_loss
from anyorder.objectives.masked_diffusion import MaskedDiffusion, MaskedDiffusionTuning
from anyorder.objectives.mixture import Mixture
from anyorder.objectives.noise import Antithetic, Independent, Stratified, Times
from anyorder.objectives.permutation import Permutation
from anyorder.objectives.schedules import Always, Annealing, Schedule, Stages, growing

__all__ = [
    "Always", "Annealing", "Antithetic", "Autoregressive", "Batch", "BlockDiffusion", "Independent", "MaskedDiffusion",
    "MaskedDiffusionTuning", "Mixture", "Objective", "Permutation", "Schedule", "Stages", "Stratified", "Times",
    "TrainingInputs", "growing", "predictions", "summed_loss",
]  # fmt: skip
