"""Scars painted by the latent-diffusion inpainter."""

from nnunet_lgesynth.trainer import LGESynthTrainer


class nnUNetTrainerLGESynth(LGESynthTrainer):
    generator = "lgesynth"
