"""Loads every pair that write.ts wrote in Hugging Face transformers and compares the logits: the largest difference over the largest
logit, in f32. Exits with 1 where a pair is above 1e-5, or where a weight was missing or left over."""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM


def logits(path: Path, ids: list[int]) -> torch.Tensor:
    model, info = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    problems = {key: list(names) for key, names in info.items() if key in ("missing_keys", "unexpected_keys", "mismatched_keys") and names}
    if problems:
        raise SystemExit(f"{path.name}: {problems}")
    with torch.no_grad():
        return model.eval()(torch.tensor([ids])).logits[0]


folder = Path(sys.argv[1])
content = json.loads((folder / "cases.json").read_text())
worst = 0.0
for case in content["cases"]:
    dense = logits(folder / case["dense"], content["ids"])
    moe = logits(folder / case["moe"], content["ids"])
    gap = ((dense - moe).abs().max() / dense.abs().max()).item()
    worst = max(worst, gap)
    print(f"{case['moe']:45} {gap:.2e}")
print(f"{len(content['cases'])} pairs, worst {worst:.2e}")
sys.exit(0 if worst <= 1e-5 else 1)
