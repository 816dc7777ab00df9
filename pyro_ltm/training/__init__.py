"""The slow loop: the step, the trainer, the run folder."""

from pyro_ltm.training.launch import train
from pyro_ltm.training.run import Run
from pyro_ltm.training.step import StepReport, train_step
from pyro_ltm.training.trainer import Progress, Stopped, Trainer

__all__ = ["Progress", "Run", "StepReport", "Stopped", "Trainer", "train", "train_step"]
