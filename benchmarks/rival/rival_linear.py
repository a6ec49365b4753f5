"""PyTorch's F.linear, out of the box."""

import time

import torch
import torch.nn.functional as F

state = {}


def setup(m: int, n: int, k: int, dtype: str, threads: int) -> dict:
    torch.set_num_threads(threads)
    kind = torch.float32 if dtype == "f32" else torch.bfloat16
    generator = torch.Generator().manual_seed(1)
    state["x"] = (torch.rand(m, k, generator=generator) - 0.5).to(kind)
    state["w"] = (torch.rand(n, k, generator=generator) - 0.5).to(kind)
    return {}


def sample(calls: int) -> dict:
    x, w = state["x"], state["w"]
    with torch.inference_mode():
        started = time.perf_counter()
        for _ in range(calls):
            F.linear(x, w)
        return {"seconds": time.perf_counter() - started}


def versions() -> dict:
    import transformers

    return {"torch": torch.__version__, "transformers": transformers.__version__, "python": __import__("platform").python_version()}
