"""Skywork-MoE in plain PyTorch, for make.py: transformers has no class for it.

A definition of our own from the formulas of the technical report (arXiv 2406.06563, section 4.1) and the keys of the released
configuration:

    z = W x                     W is two layers with a tanh between under moe_2layer_gate
    z~ = lambda (z - mean z) / std z      unbiased standard deviation, no epsilon, under moe_use_logits_norm
    g = softmax z~              over all experts, or over the chosen ones only under moe_use_skywork_gating
    y = sum over the top-k of g_j Expert_j(x) / sum over the top-k of g_j
    x is multiplied by k for the experts unless moe_feature_no_mul_topk

Keys beyond the release are this project's: sigmoid scores, groups of experts (a group is worth the sum of its two best experts;
only the best groups are chosen from), a bias that is added to the scores for choosing only, a factor of the routed sum, and a
shared expert with a sigmoid gate and a factor.

It loops over tokens and experts, shares no code with transformers or with our TypeScript, and is slow on purpose.
"""

import math

import torch
from torch import nn


class Norm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x):
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.eps) * self.weight


class FeedForward(nn.Module):
    """SwiGLU under any three names."""

    def __init__(self, hidden, width, names):
        super().__init__()
        self.names = names
        for name, shape in zip(names, [(hidden, width), (hidden, width), (width, hidden)]):
            self.add_module(name, nn.Linear(*shape, bias=False))

    def forward(self, x):
        gate, up, down = (getattr(self, name) for name in self.names)
        a = gate(x)
        return down(a * torch.sigmoid(a) * up(x))


class Moe(nn.Module):
    def __init__(self, c):
        super().__init__()
        hidden, n = c["hidden_size"], c["num_experts"][0]
        self.c, self.n, self.top_k = c, n, c["num_experts_per_tok"]
        if c["moe_2layer_gate"]:
            self.gate = nn.Sequential(nn.Linear(hidden, 8 * n, bias=False), nn.Tanh(), nn.Linear(8 * n, n, bias=False))
        else:
            self.gate = nn.Linear(hidden, n, bias=False)
        width = c.get("moe_expert_intermediate_size", c["intermediate_size"])
        self.experts = nn.ModuleList(FeedForward(hidden, width, ("w1", "w3", "w2")) for _ in range(n))
        if c.get("moe_selection_bias"):
            # Large enough to change choices.
            g = torch.Generator().manual_seed(n)
            self.gate.register_buffer("e_score_correction_bias", torch.randn(n, generator=g) * 0.3)
        shared = c.get("moe_shared_expert_intermediate_size", 0)
        if shared:
            self.shared_expert = FeedForward(hidden, shared, ("gate_proj", "up_proj", "down_proj"))
            if c["moe_shared_expert_gate"]:
                self.shared_expert_gate = nn.Linear(hidden, 1, bias=False)
        self.margin, self.deviations = math.inf, []

    def scores(self, z):
        """Scores of all experts for one token, from which k are chosen."""
        self.deviations.append(z.std().item())
        if self.c["moe_use_logits_norm"]:
            deviation = z - z.sum() / self.n
            z = self.c["moe_gate_norm_std"] * deviation / torch.sqrt((deviation * deviation).sum() / (self.n - 1))
        if self.c.get("moe_scoring") == "sigmoid":
            return 1 / (1 + torch.exp(-z))
        if self.c["moe_use_skywork_gating"]:
            return z
        return torch.exp(z) / torch.exp(z).sum()

    def best(self, values, k):
        """Indices of the k largest, and the margin to the next."""
        order = sorted(range(len(values)), key=lambda j: -values[j])
        if k < len(order):
            self.margin = min(self.margin, values[order[k - 1]] - values[order[k]])
        return order[:k]

    def choose(self, scores):
        bias = getattr(self.gate, "e_score_correction_bias", torch.zeros(self.n))
        values = (scores + bias).tolist()
        groups = self.c.get("moe_num_groups", 0)
        if not groups:
            return self.best(values, self.top_k)
        size = self.n // groups
        worth = [sum(sorted(values[g * size:(g + 1) * size])[-2:]) for g in range(groups)]
        allowed = self.best(worth, self.c["moe_top_groups"])
        return self.best([v if j // size in allowed else -math.inf for j, v in enumerate(values)], self.top_k)

    def forward(self, x):
        outputs = []
        for token in x:
            g = self.scores(self.gate(token))
            chosen = self.choose(g)
            if self.c["moe_use_skywork_gating"]:
                g = {j: torch.exp(g[j]) for j in chosen}
            s = sum(g[j] for j in chosen)
            seen = token if self.c["moe_feature_no_mul_topk"] else token * self.top_k
            y = self.c.get("moe_routed_scaling_factor", 1.0) * sum(g[j] / s * self.experts[j](seen) for j in chosen)
            if hasattr(self, "shared_expert"):
                factor = self.c["moe_shared_expert_scaling_factor"]
                if hasattr(self, "shared_expert_gate"):
                    factor = factor * torch.sigmoid(self.shared_expert_gate(token))
                y = y + factor * self.shared_expert(token)
            outputs.append(y)
        return torch.stack(outputs)


class Attention(nn.Module):
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


class Layer(nn.Module):
    def __init__(self, c, index):
        super().__init__()
        hidden, eps = c["hidden_size"], c["rms_norm_eps"]
        self.self_attn = Attention(hidden, c["num_attention_heads"], hidden // c["num_attention_heads"], c["rope_theta"])
        self.has_experts = (index + 1) % c["moe_expert_interval"] == 0
        if self.has_experts:
            self.block_sparse_moe = Moe(c)
        else:
            self.mlp = FeedForward(hidden, c["intermediate_size"], ("gate_proj", "up_proj", "down_proj"))
        self.input_layernorm, self.post_attention_layernorm = Norm(hidden, eps), Norm(hidden, eps)

    def forward(self, x):
        attended, weights = self.self_attn(self.input_layernorm(x))
        x = x + attended
        feed_forward = self.block_sparse_moe if self.has_experts else self.mlp
        return x + feed_forward(self.post_attention_layernorm(x)), weights


class Skywork(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.model.layers = nn.ModuleList(Layer(c, index) for index in range(c["num_hidden_layers"]))
        self.model.norm = Norm(c["hidden_size"], c["rms_norm_eps"])
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


def make_skywork_moe(fill, run, seed, **settings):
    """Configuration, filled model, what `run` gives of it, and facts of its routing."""
    config = {
        "architectures": ["SkyworkForCausalLM"], "model_type": "skywork_moe", "hidden_act": "silu",
        "vocab_size": 61, "hidden_size": 32, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 4, "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.01,
        "num_experts": [6], "num_experts_per_tok": 2, "moe_expert_interval": 1, "moe_use_skywork_gating": False,
        "moe_2layer_gate": False, "moe_use_logits_norm": True, "moe_gate_norm_std": 1.0, "moe_feature_no_mul_topk": True,
        "torch_dtype": "float32", **settings,
    }
    model = Skywork(config)
    fill(model, seed)
    result = run(model, config["vocab_size"], seed + 1)
    blocks = [layer.block_sparse_moe for layer in model.model.layers if layer.has_experts]
    margin = min(block.margin for block in blocks)
    spread = min(sum(block.deviations) / len(block.deviations) for block in blocks)
    assert margin > 1e-4, f"a routing decision is nearly a tie: {margin}"
    assert spread > 0.4, f"router logits have a standard deviation of {spread} over the experts"
    return config, model, result, f"routing: margin {margin:.2g}, spread {spread:.2f}"
