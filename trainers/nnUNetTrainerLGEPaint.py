"""Scars painted by rule."""

from nnunet_lgesynth.trainer import LGESynthTrainer


class nnUNetTrainerLGEPaint(LGESynthTrainer):
    generator = "paint"
