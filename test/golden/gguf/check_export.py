"""Checks by hand that llama.cpp computes with an exported GGUF what transformers computes with the original.

Small random models of each architecture go from transformers through our export to llama.cpp; printed is the largest
difference of logits over the largest logit (about 1e-6 in f32). Needs torch, transformers, llama-cpp-python, gguf and node.
Run as `python check_export.py` in this folder.
"""

import json
import os
import subprocess
import tempfile

import gguf
import numpy as np
import torch
import transformers as hf
from llama_cpp import Llama

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCE = os.path.join(HERE, "../../../src/checkpoint")
SHARED = dict(
    vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=512, tie_word_embeddings=False, initializer_range=0.15,
)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
LINEAR = dict(rope_type="linear", factor=4.0)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)
CONFIGS = {
    "llama": hf.LlamaConfig(**SHARED),
    "llama tied": hf.LlamaConfig(**{**SHARED, "tie_word_embeddings": True}),
    "llama3 scaling": hf.LlamaConfig(**SHARED, head_dim=32, rope_theta=500000.0, rope_scaling=LLAMA3),
    "linear scaling": hf.LlamaConfig(**SHARED, rope_scaling=LINEAR),
    "yarn scaling": hf.Qwen2Config(**SHARED, rope_scaling=YARN),
    "mistral": hf.MistralConfig(**SHARED, sliding_window=None),
    "mixtral": hf.MixtralConfig(**SHARED, num_local_experts=4, num_experts_per_tok=2, sliding_window=None),
    "qwen2": hf.Qwen2Config(**SHARED),
    "qwen3": hf.Qwen3Config(**SHARED, head_dim=16),
}
EXPORT = """
import { readFileSync } from "node:fs";
const [source, folder, target] = process.argv.slice(1);
const { openModelWeights } = await import(source + "/model-weights.ts");
const { exportGguf } = await import(source + "/gguf-export.ts");
using weights = openModelWeights(folder);
const config = JSON.parse(readFileSync(folder + "/config.json", "utf8"));
const metadata = new Map([["tokenizer.ggml.model", { type: "string", value: "none" }]]);
exportGguf(target, weights, config, { type: "F32", metadata });
"""

hf.logging.set_verbosity_error()
torch.manual_seed(0)
tokens = [1, 5, 9, 200, 33, 77, 310, 4] * 12
for name, config in CONFIGS.items():
    model = hf.AutoModelForCausalLM.from_config(config).float().eval()
    for key, parameter in model.named_parameters():
        if "norm" in key:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        if key.endswith("bias"):
            torch.nn.init.normal_(parameter, 0, 0.5)
    with torch.no_grad():
        want = model(torch.tensor([tokens])).logits[0].numpy()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        target = os.path.join(folder, "model.gguf")
        subprocess.run(["node", "--input-type=module", "-e", EXPORT, SOURCE, folder, target], check=True)
        numTensors = len(gguf.GGUFReader(target).tensors)
        # type 0 is F32: keys and values in the cache are not rounded.
        engine = Llama(target, n_ctx=128, n_threads=1, logits_all=True, verbose=False, type_k=0, type_v=0)
        engine.eval(tokens)
        got = np.array(engine.scores[: len(tokens)])
    print(json.dumps({"model": name, "tensors": numTensors, "gap": float(np.abs(got - want).max() / np.abs(want).max())}))
