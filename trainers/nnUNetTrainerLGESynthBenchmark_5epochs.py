"""nnU-Net's own five-epoch GPU benchmark, with the inpainter's scars in the batches."""

from nnunetv2.training.nnUNetTrainer.variants.benchmarking import (
    nnUNetTrainerBenchmark_5epochs as own,
)

from nnunet_lgesynth.trainer import LGESynthTrainer


class nnUNetTrainerLGESynthBenchmark_5epochs(LGESynthTrainer, own.nnUNetTrainerBenchmark_5epochs):
    generator = "lgesynth"
