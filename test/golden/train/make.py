"""Writes dense/ (a tiny random Llama) and torch.json: the losses of 20 steps of transformers and torch on it.

Tokens, order, AdamW, clipping and schedule are those of `curves.ts`, which repeats the steps with our trainer. The schedule
is written out here once more, on purpose. Run by hand as `python make.py` in this folder; tests read the files only.
"""

import json
import math

import torch
import torch.nn.functional as F
import transformers

VOCAB, SEQUENCE, BATCH, STEPS = 96, 16, 4, 20
PEAK, FINAL, WARMUP = 1e-2, 0.1, 4


def tokens(count: int) -> list[int]:
    """One of eight tokens by a linear congruence, then the two that follow it."""
    state, out = 12345, []
    for i in range(count):
        state = (1103515245 * state + 12345) % 2**31
        out.append(12 * ((state >> 16) % 8) if i % 3 == 0 else out[-1] + 1)
    return out


def rate(step: int) -> float:
    if step < WARMUP:
        return PEAK * (step + 1) / WARMUP
    progress = (step - WARMUP) / (STEPS - WARMUP)
    return FINAL * PEAK + (PEAK - FINAL * PEAK) * 0.5 * (1 + math.cos(math.pi * progress))


def main() -> None:
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=64, rms_norm_eps=1e-5, tie_word_embeddings=False, initializer_range=0.1, bos_token_id=0, eos_token_id=0,
    )
    model = transformers.LlamaForCausalLM(config).float()
    model.save_pretrained("dense", safe_serialization=True)
    data = tokens(STEPS * BATCH * SEQUENCE + 1)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95), eps=1e-8, foreach=False)
    losses, norms = [], []
    for step in range(STEPS):
        at = step * BATCH * SEQUENCE
        ids = torch.tensor(data[at : at + BATCH * SEQUENCE]).view(BATCH, SEQUENCE)
        targets = torch.tensor(data[at + 1 : at + BATCH * SEQUENCE + 1]).view(BATCH, SEQUENCE)
        loss = F.cross_entropy(model(ids).logits.view(-1, VOCAB), targets.view(-1))
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.step()
        losses.append(loss.item())
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    with open("torch.json", "w") as file:
        json.dump({**versions, "losses": losses, "gradNorms": norms}, file, indent=1)


main()
