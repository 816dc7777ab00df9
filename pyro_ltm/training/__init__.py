"""The slow loop: one step (Algorithm 1), the trainer, and `train`."""

from pyro_ltm.interruption import Stopped
from pyro_ltm.training.launch import train
from pyro_ltm.training.step import StepReport, train_step
from pyro_ltm.training.trainer import Progress, Trainer

__all__ = ["Progress", "StepReport", "Stopped", "Trainer", "train", "train_step"]
