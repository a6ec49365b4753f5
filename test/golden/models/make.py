"""Writes the golden models: small random models of every architecture, computed by Hugging Face transformers in float32.

Run by hand, with Python, torch, transformers and safetensors installed: `python test/golden/models/make.py`. The fixtures
are committed; the tests never run this. Per architecture a folder with

    config.json           as save_pretrained writes it (transformers 5 spelling, except where the model has no class there)
    model.safetensors     weights, float32
    golden.safetensors    ids [B, S] int32, logits [B, S, V], loss [1]
    grads.safetensors     d loss / d weight, under the weights' names

The loss is the mean cross-entropy of the next token over all B * (S - 1) predictions.

The models are made to bite: norm weights uniform in 0.5..1.5, biases normal and non-zero, logits with a standard deviation
of at least 2, attention far from uniform, routing decisions far from ties. Each is asserted below.
"""

import json
import math
import shutil
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from transformers import (
    LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, MixtralConfig, MixtralForCausalLM,
    Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM,
)

HERE = Path(__file__).parent
BATCH, SEQUENCE = 2, 72  # longer than one 64-key block of attention
BASE = dict(
    vocab_size=61, hidden_size=32, intermediate_size=44, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=None,
    tie_word_embeddings=False, attn_implementation="eager", rms_norm_eps=1e-5,
)


def fill(model, seed, q_gain=1.6):
    """Weights that make every part of the computation visible in the logits."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:
                p.copy_(torch.rand(p.shape, generator=g) + 0.5)
                if "q_norm" in name or "k_norm" in name:
                    p.mul_(1.8)  # these set the scale of the scores: attention is peaked only above 1
            elif name.endswith("bias"):
                p.copy_(torch.randn(p.shape, generator=g) * 0.7)
            else:
                gain = 1.0
                if "q_proj" in name or "k_proj" in name:
                    gain = q_gain
                elif "lm_head" in name or "embed_tokens" in name:
                    gain = 2.5
                elif "gate.weight" in name and "proj" not in name:
                    gain = 1.5  # a router that decides
                p.copy_(torch.randn(p.shape, generator=g) * (gain / math.sqrt(p.shape[-1])))


def run(model, vocab, seed):
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, vocab, (BATCH, SEQUENCE), generator=g)
    logits, attentions = model(ids)
    loss = F.cross_entropy(logits[:, :-1].reshape(-1, vocab), ids[:, 1:].reshape(-1))
    model.zero_grad()
    loss.backward()
    std = logits.std().item()
    # Mean over queries (from position 16 on) of the largest attention weight: 1/t where attention is uniform.
    peak = torch.stack([a[..., 16:, :].max(-1).values.mean() for a in attentions]).min().item()
    assert std >= 2, f"logits have a standard deviation of {std}"
    assert peak >= 0.2, f"attention is too flat: mean largest weight {peak}"
    return ids, logits.detach(), loss.detach(), dict(std=round(std, 2), peak=round(peak, 2), loss=round(loss.item(), 3))


def transformers_forward(model):
    def forward(ids):
        out = model(ids, output_attentions=True, use_cache=False)
        return out.logits, out.attentions
    forward.zero_grad = model.zero_grad
    return forward


def per_expert(tensors):
    """The fused expert tensors of transformers 5 under the per-expert names of the released files."""
    out = {}
    for name, t in tensors.items():
        head, _, tail = name.partition(".mlp.")
        if tail == "gate.weight":
            out[f"{head}.block_sparse_moe.gate.weight"] = t
        elif tail == "experts.gate_up_proj":
            for e, both in enumerate(t):
                w1, w3 = both.chunk(2, dim=0)
                out[f"{head}.block_sparse_moe.experts.{e}.w1.weight"] = w1.contiguous()
                out[f"{head}.block_sparse_moe.experts.{e}.w3.weight"] = w3.contiguous()
        elif tail == "experts.down_proj":
            for e, w2 in enumerate(t):
                out[f"{head}.block_sparse_moe.experts.{e}.w2.weight"] = w2.contiguous()
        else:
            out[name] = t
    return out


def write(name, config, model, result, rename=lambda tensors: tensors):
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    ids, logits, loss, facts = result
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    grads = {n: p.grad.clone() for n, p in model.named_parameters()}
    for n, grad in grads.items():
        assert grad.abs().max() > 1e-6, f"{name}: the gradient of {n} vanishes"
    save_file(rename(weights), folder / "model.safetensors", metadata={"format": "pt"})
    save_file(rename(grads), folder / "grads.safetensors")
    save_file({"ids": ids.int(), "logits": logits, "loss": loss.reshape(1)}, folder / "golden.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for file in folder.iterdir():
        assert file.stat().st_size < 1_000_000, file
    print(name, facts, f"{sum(f.stat().st_size for f in folder.iterdir()) // 1024} KiB")


def make_transformers(name, config_class, model_class, seed, rename=lambda t: t, change_config=lambda c: c, **settings):
    config = config_class(**{**BASE, **settings})
    model = model_class(config).float().eval()
    fill(model, seed)
    result = run(transformers_forward(model), config.vocab_size, seed + 1)
    file = change_config(json.loads(config.to_json_string(use_diff=False)))
    file = {k: v for k, v in file.items() if not k.startswith("_") and k in KEEP}
    write(name, file, model, result, rename)
    return model


# Keys of the saved configuration that describe the model (save_pretrained writes dozens of generation settings too).
KEEP = set(BASE) | {
    "architectures", "model_type", "head_dim", "hidden_act", "initializer_range", "rope_parameters", "rope_theta", "rope_scaling",
    "attention_bias", "mlp_bias", "sliding_window", "use_sliding_window", "max_window_layers", "layer_types", "num_local_experts",
    "num_experts_per_tok", "dtype", "torch_dtype", "transformers_version", "attention_dropout", "router_aux_loss_coef",
} - {"attn_implementation"}


# ---- Skywork-MoE. transformers has no class for it, so this is a plain definition of our own, from the formulas of the
# technical report (arXiv 2406.06563, section 4.1): z = W x; z~ = lambda (z - mean z) / std z with the unbiased standard
# deviation and no epsilon; g = softmax z~; y = sum over the top-k of g_j Expert_j(x) / sum over the top-k of g_j.
# It loops over tokens and experts, shares no code with transformers or with our TypeScript, and is slow on purpose.

class PlainNorm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x):
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.eps) * self.weight


class PlainExpert(nn.Module):
    def __init__(self, hidden, width):
        super().__init__()
        self.w1, self.w3 = nn.Linear(hidden, width, bias=False), nn.Linear(hidden, width, bias=False)
        self.w2 = nn.Linear(width, hidden, bias=False)

    def forward(self, x):
        a = self.w1(x)
        return self.w2(a * torch.sigmoid(a) * self.w3(x))


class PlainMoe(nn.Module):
    def __init__(self, hidden, width, num_experts, top_k, gate_std):
        super().__init__()
        self.gate = nn.Linear(hidden, num_experts, bias=False)
        self.experts = nn.ModuleList(PlainExpert(hidden, width) for _ in range(num_experts))
        self.top_k, self.gate_std, self.margin = top_k, gate_std, math.inf

    def forward(self, x):
        outputs = []
        for token in x:
            z = self.gate(token)
            if self.gate_std is not None:
                n = len(z)
                deviation = z - z.sum() / n
                z = self.gate_std * deviation / torch.sqrt((deviation * deviation).sum() / (n - 1))
            g = torch.exp(z) / torch.exp(z).sum()
            order = sorted(range(len(g)), key=lambda j: -g[j].item())
            self.margin = min(self.margin, (g[order[self.top_k - 1]] - g[order[self.top_k]]).item())
            chosen = order[: self.top_k]
            s = sum(g[j] for j in chosen)
            outputs.append(sum(g[j] / s * self.experts[j](token) for j in chosen))
        return torch.stack(outputs)


class PlainAttention(nn.Module):
    def __init__(self, hidden, heads, head_dim, theta):
        super().__init__()
        self.heads, self.head_dim, self.theta = heads, head_dim, theta
        self.q_proj, self.k_proj = nn.Linear(hidden, heads * head_dim, bias=False), nn.Linear(hidden, heads * head_dim, bias=False)
        self.v_proj, self.o_proj = nn.Linear(hidden, heads * head_dim, bias=False), nn.Linear(heads * head_dim, hidden, bias=False)

    def rotate(self, x):  # [S, heads, head_dim]; dimension j pairs with j + head_dim / 2
        half = self.head_dim // 2
        frequency = self.theta ** (-torch.arange(half, dtype=torch.float64) * 2 / self.head_dim)
        angle = torch.arange(x.shape[0], dtype=torch.float64)[:, None] * frequency
        cos, sin = angle.cos().float()[:, None], angle.sin().float()[:, None]
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def forward(self, x):  # [S, hidden]
        q, k, v = (p(x).view(-1, self.heads, self.head_dim) for p in (self.q_proj, self.k_proj, self.v_proj))
        scores = torch.einsum("thd,shd->hts", self.rotate(q), self.rotate(k)) / math.sqrt(self.head_dim)
        future = torch.ones(len(x), len(x)).triu(1).bool()
        weights = scores.masked_fill(future, -math.inf).softmax(-1)
        return self.o_proj(torch.einsum("hts,shd->thd", weights, v).reshape(len(x), -1)), weights


class PlainLayer(nn.Module):
    def __init__(self, c):
        super().__init__()
        hidden, eps = c["hidden_size"], c["rms_norm_eps"]
        self.self_attn = PlainAttention(hidden, c["num_attention_heads"], hidden // c["num_attention_heads"], c["rope_theta"])
        self.block_sparse_moe = PlainMoe(hidden, c["intermediate_size"], c["num_experts"][0], c["num_experts_per_tok"],
                                         c["moe_gate_norm_std"] if c["moe_use_logits_norm"] else None)
        self.input_layernorm, self.post_attention_layernorm = PlainNorm(hidden, eps), PlainNorm(hidden, eps)

    def forward(self, x):
        attended, weights = self.self_attn(self.input_layernorm(x))
        x = x + attended
        return x + self.block_sparse_moe(self.post_attention_layernorm(x)), weights


class PlainSkywork(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.model.layers = nn.ModuleList(PlainLayer(c) for _ in range(c["num_hidden_layers"]))
        self.model.norm = PlainNorm(c["hidden_size"], c["rms_norm_eps"])
        self.lm_head = nn.Linear(c["hidden_size"], c["vocab_size"], bias=False)

    def forward(self, ids):
        logits, attentions = [], []
        for sequence in ids:
            x = self.model.embed_tokens(sequence)
            for layer in self.model.layers:
                x, weights = layer(x)
                attentions.append(weights)
            logits.append(self.lm_head(self.model.norm(x)))
        return torch.stack(logits), attentions


def make_skywork_moe(name, seed, **settings):
    config = {
        "architectures": ["SkyworkForCausalLM"], "model_type": "skywork_moe", "hidden_act": "silu",
        "vocab_size": 61, "hidden_size": 32, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 4, "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.01,
        "num_experts": [6], "num_experts_per_tok": 2, "moe_expert_interval": 1, "moe_use_skywork_gating": False,
        "moe_2layer_gate": False, "moe_use_logits_norm": True, "moe_gate_norm_std": 1.0, "moe_feature_no_mul_topk": True,
        "torch_dtype": "float32", **settings,
    }
    model = PlainSkywork(config)
    fill(model, seed)
    result = run(model, config["vocab_size"], seed + 1)
    margin = min(layer.block_sparse_moe.margin for layer in model.model.layers)
    assert margin > 1e-4, f"a routing decision is nearly a tie: {margin}"
    write(name, config, model, result)


def rope_table():
    """Inverse frequencies and attention factors of every scaling type, from transformers' own functions."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    cases = []
    base = dict(hidden_size=128, num_attention_heads=2, max_position_embeddings=2048)
    for scaling, seq_len in [
        (dict(rope_type="linear", factor=4.0), None),
        (dict(rope_type="dynamic", factor=2.0), 1000),
        (dict(rope_type="dynamic", factor=2.0), 5000),
        (dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=512), None),
        (dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=512), None),
        (dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=512, beta_fast=16.0, beta_slow=2.0, attention_factor=1.25, truncate=False), None),
    ]:
        config = LlamaConfig(**base, rope_parameters=dict(rope_theta=50000.0, **scaling))
        inv_freq, factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, "cpu", seq_len=seq_len)
        cases.append(dict(rope_parameters=dict(rope_theta=50000.0, **scaling), seq_len=seq_len, inv_freq=inv_freq.tolist(), attention_factor=factor, **base))
    (HERE / "rope.json").write_text(json.dumps(cases) + "\n")


def main():
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    theta = lambda **more: dict(rope_theta=10000.0, rope_type="default", **more)
    make_transformers("llama2", LlamaConfig, LlamaForCausalLM, 10, num_key_value_heads=4, rope_parameters=theta())
    make_transformers("llama3", LlamaConfig, LlamaForCausalLM, 20, rope_parameters=dict(
        rope_theta=500000.0, rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32))
    make_transformers("mistral", MistralConfig, MistralForCausalLM, 30, sliding_window=11, head_dim=10, rope_parameters=theta())
    make_transformers("qwen2", Qwen2Config, Qwen2ForCausalLM, 40, rope_parameters=theta(),
                      use_sliding_window=True, sliding_window=13, max_window_layers=1)
    make_transformers("qwen3", Qwen3Config, Qwen3ForCausalLM, 50, head_dim=12, rope_parameters=theta())
    make_transformers("smollm2", LlamaConfig, LlamaForCausalLM, 60, tie_word_embeddings=True, rope_parameters=dict(rope_theta=100000.0, rope_type="default"))
    # Skywork-13B computes what a Llama computes; its files name another model type and use the older spelling.
    def skywork(c):
        c = {**c, "model_type": "skywork", "architectures": ["SkyworkForCausalLM"], "rope_theta": 10000.0, "rope_scaling": None}
        c.pop("rope_parameters"), c.pop("head_dim", None)
        return c
    make_transformers("skywork-13b", LlamaConfig, LlamaForCausalLM, 70, num_key_value_heads=4, rope_parameters=theta(), change_config=skywork)
    mixtral = make_transformers("mixtral", MixtralConfig, MixtralForCausalLM, 80, rename=per_expert, intermediate_size=20,
                                num_local_experts=5, rope_parameters=theta())
    margin = mixtral_margin(mixtral)
    assert margin > 1e-4, f"a routing decision is nearly a tie: {margin}"
    save_file({n: p.detach().clone() for n, p in mixtral.named_parameters()}, HERE / "mixtral" / "fused.safetensors")
    make_skywork_moe("skywork-moe", 90)
    make_skywork_moe("skywork-moe-lambda2", 110, moe_gate_norm_std=2.0, num_experts=[4], num_hidden_layers=1)
    rope_table()


def mixtral_margin(model):
    """Smallest gap between the last chosen and the first not chosen probability, on the golden input."""
    margins = []
    hooks = [layer.mlp.gate.register_forward_hook(lambda _m, _i, out: margins.append(out[0].softmax(-1).sort(-1, descending=True).values))
             for layer in model.model.layers]
    model(torch.randint(0, model.config.vocab_size, (BATCH, SEQUENCE), generator=torch.Generator().manual_seed(81)))
    for hook in hooks:
        hook.remove()
    return min((p[..., 1] - p[..., 2]).min().item() for p in margins)


if __name__ == "__main__":
    main()
