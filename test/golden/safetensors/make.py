"""Writes dtypes.safetensors with the format's own Python library: values whose conversion to f32 is tested, with PyTorch's
conversions beside them. Needs torch and safetensors; run as `python make.py` in this folder."""

import torch
from safetensors.torch import save_file

every_byte = torch.arange(256, dtype=torch.int32).to(torch.uint8)
sources = {
    "F64": torch.tensor([0.1, -1e300, 5e-324, 3.0], dtype=torch.float64),
    "F32": torch.tensor([0.1, -0.0, 1e-45, float("inf")], dtype=torch.float32),
    "F16": torch.tensor([0.1, -65504.0, 6e-8, float("-inf")], dtype=torch.float16),
    "BF16": torch.tensor([0.1, -3.3e38, 1e-40, float("inf")], dtype=torch.bfloat16),
    "I64": torch.tensor([2**62 + 1, -(2**53) - 1, 0, -1]),
    "I32": torch.tensor([2**31 - 1, -(2**31), 0, 16777217], dtype=torch.int32),
    "I16": torch.tensor([32767, -32768], dtype=torch.int16),
    "I8": torch.tensor([127, -128], dtype=torch.int8),
    "U8": every_byte.clone(),
    "BOOL": torch.tensor([[True, False, True]]),
    "F8_E4M3": every_byte.clone().view(torch.float8_e4m3fn),
    "F8_E5M2": every_byte.clone().view(torch.float8_e5m2),
    "scalar": torch.tensor(1.5),
    "empty": torch.zeros(0, 3),
}
tensors = dict(sources)
for name, value in sources.items():
    tensors[f"{name}.f32"] = value.to(torch.float32, copy=True)
noise = torch.randn(500, generator=torch.Generator().manual_seed(1)) * torch.logspace(-42, 38, 500)
ties = (torch.arange(64, dtype=torch.int32) * 0x1000 + 0x3F800000).view(torch.float32)
tensors["round.f32"] = torch.cat([noise, ties, torch.tensor([float("inf"), -0.0, 65519.9, 65520.0, 3.4e38])])
tensors["round.F16"] = tensors["round.f32"].to(torch.float16)
tensors["round.BF16"] = tensors["round.f32"].to(torch.bfloat16)
save_file(tensors, "dtypes.safetensors", metadata={"format": "pt", "note": "混合 ✓"})
