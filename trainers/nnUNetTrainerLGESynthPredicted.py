"""As nnUNetTrainerLGESynth, but labelled by the judge: the scar that it finds, as was published."""

from nnunet_lgesynth.config import QCConfig
from nnunet_lgesynth.trainer import LGESynthTrainer


class nnUNetTrainerLGESynthPredicted(LGESynthTrainer):
    generator = "lgesynth"
    qc = QCConfig(label="predicted")
