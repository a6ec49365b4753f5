"""A training step of a transformers model: SDPA attention, fused AdamW, gradients clipped to norm 1.

Variants: "f32"; "autocast" (f32 weights, bf16 arithmetic); "bf16" (everything bf16, optimizer state included). "/eager" or
"/grouped_mm" appended is the implementation of the experts; "+compile" runs the forward through torch.compile. A model with experts
computes its balance loss too, as ours does.
"""

import gc
import time

import torch
from transformers import AutoConfig, AutoModelForCausalLM

state = {}


def status(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    raise KeyError(field)


def setup(variant: str, shape: dict, threads: int) -> dict:
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    state.clear()
    gc.collect()
    ways, _, compiled = variant.partition("+")
    precision, _, experts = ways.partition("/")
    settings = dict(shape["config"])
    config = AutoConfig.for_model(settings.pop("model_type"), **settings, use_cache=False)
    if experts:
        config.output_router_logits = True
    options = {"experts_implementation": experts} if experts else {}
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", **options).train()
    if precision == "bf16":
        model = model.to(torch.bfloat16)
    state["optimizer"] = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    state["parameters"] = list(model.parameters())
    state["forward"] = torch.compile(model) if compiled else model
    state["autocast"] = precision == "autocast"
    state["ids"] = torch.randint(0, config.vocab_size, (shape["batch"], shape["sequence"]))
    return {"numParams": sum(p.numel() for p in state["parameters"])}


def ready() -> dict:
    return {}


def step() -> dict:
    ids = state["ids"]
    started = time.perf_counter()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=state["autocast"]):
        loss = state["forward"](input_ids=ids, labels=ids).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(state["parameters"], 1.0)
    state["optimizer"].step()
    state["optimizer"].zero_grad(set_to_none=True)
    value = loss.item()
    return {"seconds": time.perf_counter() - started, "loss": value}


def memory(variant: str, shape: dict, threads: int, steps: int) -> dict:
    """Growth of the process's peak resident memory over `steps` steps, from just before the model exists."""
    gc.collect()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts again from what is resident now
    before = status("VmRSS")
    setup(variant, shape, threads)
    for _ in range(steps):
        step()
    return {"bytes": status("VmHWM") - before, "before": before}
