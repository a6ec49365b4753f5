"""Writes adamw.json and schedules.json: what torch and transformers do with 20 updates that the tests repeat.

AdamW: gradients are sines that both sides compute, clipped to a norm of 1 (every fourth step is below it), matrices decay
and vectors do not. Schedules: factors of peak rate. Run by hand as `python make.py` in this folder; tests read the files only.
"""

import json
import math

import torch
import transformers

SHAPES = {"matrix": (5, 7), "vector": (9,), "experts": (2, 3, 4)}
BETAS, EPS, WEIGHT_DECAY, MAX_NORM = (0.9, 0.95), 1e-8, 0.1, 1.0


def values(step: int, salt: int, shape: tuple[int, ...], scale: float) -> torch.Tensor:
    count = math.prod(shape)
    return torch.tensor([scale * math.sin(1.7 * i + 0.9 * step + salt) for i in range(count)], dtype=torch.float64).float().reshape(shape)


def adamw() -> dict:
    weights = {name: torch.nn.Parameter(values(0, salt + 10, shape, 1.0)) for salt, (name, shape) in enumerate(SHAPES.items())}
    groups = [
        {"params": [w for w in weights.values() if w.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [w for w in weights.values() if w.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=BETAS, eps=EPS, foreach=False)
    steps = []
    for step in range(20):
        rate = 0.01 * (1 + step % 3)
        for group in optimizer.param_groups:
            group["lr"] = rate
        for salt, (name, shape) in enumerate(SHAPES.items()):
            weights[name].grad = values(step, salt, shape, 0.05 if step % 4 == 3 else 0.4 * (1 + step % 4))
        norm = torch.nn.utils.clip_grad_norm_(list(weights.values()), MAX_NORM)
        optimizer.step()
        kept = {}
        if step in (0, 4, 19):
            kept = {name: {"weight": w.detach().flatten().tolist(), "exp_avg": optimizer.state[w]["exp_avg"].flatten().tolist(), "exp_avg_sq": optimizer.state[w]["exp_avg_sq"].flatten().tolist()} for name, w in weights.items()}
        steps.append({"gradNorm": norm.item(), "after": kept})
    return {"torch": torch.__version__, "shapes": SHAPES, "steps": steps}


def schedule(make, **arguments) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer, **arguments)
    rates = []
    for _ in range(20):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


def schedules() -> dict:
    return {
        "transformers": transformers.__version__,
        "linear": schedule(transformers.get_linear_schedule_with_warmup, num_warmup_steps=4, num_training_steps=18),
        "cosine": schedule(transformers.get_cosine_with_min_lr_schedule_with_warmup, num_warmup_steps=4, num_training_steps=20, min_lr_rate=0.1),
        "wsdCosine": schedule(transformers.get_wsd_schedule, num_warmup_steps=3, num_stable_steps=7, num_decay_steps=8, min_lr_ratio=0.2),
        "wsdLinear": schedule(transformers.get_wsd_schedule, num_warmup_steps=3, num_stable_steps=7, num_decay_steps=8, min_lr_ratio=0.2, decay_type="linear"),
        "wsdSqrt": schedule(transformers.get_wsd_schedule, num_warmup_steps=3, num_stable_steps=7, num_decay_steps=8, min_lr_ratio=0.2, decay_type="1-sqrt"),
    }


if __name__ == "__main__":
    for name, content in {"adamw": adamw(), "schedules": schedules()}.items():
        with open(f"{name}.json", "w") as file:
            json.dump(content, file, indent=1)
            file.write("\n")
