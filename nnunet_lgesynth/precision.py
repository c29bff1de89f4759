"""Half precision where the device multiplies it in hardware."""

from __future__ import annotations

import torch

from nnunet_lgesynth.config import UserError

__all__ = ["autocast", "half_precision", "halve_on_cpu"]


def half_precision(device: torch.device) -> torch.dtype | None:
    """The half precision that this device multiplies in hardware: bfloat16, on older CUDA devices
    float16; None elsewhere."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    if device.type == "cpu" and supported():
        return torch.bfloat16
    return None


def autocast(device: torch.device, half: bool = True) -> torch.autocast:
    """Autocast to `half_precision`; to nothing without one, or without `half`."""
    dtype = half_precision(device)
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16,
                          enabled=half and dtype is not None)


def halve_on_cpu(network: torch.nn.Module) -> None:
    """Let a network compute in bfloat16 on a CPU, its outputs float32; its weights stay as they
    are. nnU-Net does so on CUDA alone."""
    from accelerate.utils import convert_outputs_to_fp32  # slow to import, seldom needed

    if half_precision(torch.device("cpu")) is None:
        raise UserError("--half needs a CPU that multiplies bfloat16 in hardware (AVX512_BF16), "
                        "which this one does not; leave it away.")
    network.forward = convert_outputs_to_fp32(
        torch.autocast("cpu", dtype=torch.bfloat16)(network.forward))
