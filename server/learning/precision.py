"""Number formats: what inversion and distillation compute in."""

import torch
from torch import Tensor


def parameter_dtype(precision: str) -> torch.dtype:
    """Of every weight; bfloat16 is a matter of autocast alone."""
    return torch.float64 if precision == "float64" else torch.float32


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """bfloat16 where the configuration asks for it, or with ``auto`` the hardware multiplies it."""
    enabled = precision == "bfloat16" or (precision == "auto" and has_fast_bfloat16(device))
    # Without the cache: it would go on using the weights from before an optimizer's step.
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled, cache_enabled=False)


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 itself."""
    supported: bool = (
        torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_avx512_bf16_supported()
    )
    return supported


def widen(values: Tensor) -> Tensor:
    """What autocast made bfloat16 back to float32; wider formats as they are."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
