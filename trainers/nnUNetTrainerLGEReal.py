"""The real-only twin: same code path, same budget, nothing injected."""

from nnunet_lgesynth.trainer import LGESynthTrainer


class nnUNetTrainerLGEReal(LGESynthTrainer):
    generator = None
