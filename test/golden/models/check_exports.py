"""Loads what we export in Hugging Face transformers: `python check_exports.py <folder>`, after `node export.ts <folder>`. Run by
exports.test.ts where there is such a Python.

In float32 the logits must be those of the golden files; every tensor must find its place. In bfloat16 the computation of
transformers rounds at other places than ours, so only the loading is judged and the gap printed.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

HERE, folder = Path(__file__).parent, Path(sys.argv[1])
for name in ["llama2", "llama3", "mistral", "qwen2", "qwen3", "smollm2", "mixtral", "qwen2-moe", "qwen3-moe", "olmoe"]:
    golden = load_file(HERE / name / "golden.safetensors")
    for dtype in ["f32", "bf16"]:
        # The fused kernel of the experts wants sizes that are multiples of 8; these are not.
        experts = {"experts_implementation": "eager"} if name in ("mixtral", "qwen2-moe", "qwen3-moe", "olmoe") else {}
        model, report = AutoModelForCausalLM.from_pretrained(
            folder / f"{name}.{dtype}", attn_implementation="eager", dtype="auto", output_loading_info=True, **experts)
        problems = {key: value for key, value in report.items() if value}
        with torch.no_grad():
            logits = model(golden["ids"].long()).logits.float()
        gap = ((logits - golden["logits"]).abs().max() / golden["logits"].abs().max()).item()
        print(f"{name}.{dtype}: {model.dtype}, gap {gap:.2g}")
        assert not problems, problems
        assert gap < 1e-5 or dtype == "bf16", gap
