"""Writes the golden models: small random models of every architecture, computed by Hugging Face transformers in float32.

Run by hand, with Python, torch, transformers and safetensors installed: `python test/golden/models/make.py [name ...]` (all
of them without names). The fixtures are committed; the tests never run this. Skywork-MoE, which transformers does not have, is
plain_skywork.py. Per architecture a folder with

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
import sys
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import (
    LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, MixtralConfig, MixtralForCausalLM,
    OlmoeConfig, OlmoeForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM,
    Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM,
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
                elif "gate." in name and "proj" not in name:
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


MIXTRAL_NAMES = ("block_sparse_moe", "w1", "w3", "w2")
QWEN_NAMES = ("mlp", "gate_proj", "up_proj", "down_proj")


def per_expert(names):
    """Renames the fused expert tensors of transformers 5 to the per-expert names of the released files."""
    block, gate, up, down = names

    def rename(tensors):
        out = {}
        for name, t in tensors.items():
            head, _, tail = name.partition(".mlp.")
            if tail == "gate.weight":
                out[f"{head}.{block}.gate.weight"] = t
            elif tail == "experts.gate_up_proj":
                for e, both in enumerate(t):
                    first, second = both.chunk(2, dim=0)
                    out[f"{head}.{block}.experts.{e}.{gate}.weight"] = first.contiguous()
                    out[f"{head}.{block}.experts.{e}.{up}.weight"] = second.contiguous()
            elif tail == "experts.down_proj":
                for e, matrix in enumerate(t):
                    out[f"{head}.{block}.experts.{e}.{down}.weight"] = matrix.contiguous()
            else:
                out[name] = t
        return out
    return rename


def write(name, config, model, result, rename=lambda tensors: tensors):
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    ids, logits, loss, facts = result
    weights = {n: p.detach().clone() for n, p in [*model.named_parameters(), *model.named_buffers()] if "rotary" not in n}
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
    "num_experts_per_tok", "num_experts", "norm_topk_prob", "moe_intermediate_size", "shared_expert_intermediate_size",
    "decoder_sparse_step", "mlp_only_layers", "qkv_bias", "clip_qkv", "dtype", "torch_dtype", "transformers_version", "attention_dropout", "router_aux_loss_coef",
} - {"attn_implementation"}


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


def make_moe(name, config_class, model_class, seed, names, **settings):
    """A model with experts: no routing decision may be nearly a tie, and routers must decide."""
    model = make_transformers(name, config_class, model_class, seed, rename=per_expert(names), **settings)
    logits = []
    gates = [layer.mlp.gate for layer in model.model.layers if hasattr(layer.mlp, "gate")]
    hooks = [gate.register_forward_hook(lambda _m, _i, out: logits.append(out[0].detach())) for gate in gates]
    ids = torch.randint(0, model.config.vocab_size, (BATCH, SEQUENCE), generator=torch.Generator().manual_seed(seed + 1))
    model(ids)
    for hook in hooks:
        hook.remove()
    k = model.config.num_experts_per_tok
    ordered = [x.softmax(-1).sort(-1, descending=True).values for x in logits]
    margin = min((p[..., k - 1] - p[..., k]).min().item() for p in ordered)
    spread = min(x.std(-1).mean().item() for x in logits)
    assert margin > 1e-4, f"{name}: a routing decision is nearly a tie: {margin}"
    assert spread > 0.8, f"{name}: router logits have a standard deviation of {spread} over the experts"
    print(f"    routing: margin {margin:.2g}, spread {spread:.2f}")
    return model


def skywork(c):
    """Skywork-13B computes what a Llama computes; its files name another model type and use the older spelling."""
    c = {**c, "model_type": "skywork", "architectures": ["SkyworkForCausalLM"], "rope_theta": 10000.0, "rope_scaling": None}
    c.pop("rope_parameters"), c.pop("head_dim", None)
    return c


def mixtral(name):
    model = make_moe(name, MixtralConfig, MixtralForCausalLM, 80, MIXTRAL_NAMES, intermediate_size=20, num_local_experts=5,
                     rope_parameters=theta())
    save_file({n: p.detach().clone() for n, p in model.named_parameters()}, HERE / name / "fused.safetensors")


def qwen2_moe(name):
    model = make_moe(name, Qwen2MoeConfig, Qwen2MoeForCausalLM, 130, QWEN_NAMES, moe_intermediate_size=20,
                     shared_expert_intermediate_size=28, num_experts=6, num_experts_per_tok=2, norm_topk_prob=False,
                     rope_parameters=theta())
    save_file({n: p.detach().clone() for n, p in model.named_parameters()}, HERE / name / "fused.safetensors")


def theta(**more):
    return dict(rope_theta=10000.0, rope_type="default", **more)


def plain(name, seed, **settings):
    from plain_skywork import make_skywork_moe
    config, model, result, facts = make_skywork_moe(fill, run, seed, **settings)
    write(name, config, model, result)
    print("   ", facts)


MODELS = {
    "llama2": lambda n: make_transformers(n, LlamaConfig, LlamaForCausalLM, 10, num_key_value_heads=4, rope_parameters=theta()),
    "llama3": lambda n: make_transformers(n, LlamaConfig, LlamaForCausalLM, 20, rope_parameters=dict(
        rope_theta=500000.0, rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=32)),
    "mistral": lambda n: make_transformers(n, MistralConfig, MistralForCausalLM, 30, sliding_window=11, head_dim=10,
                                           rope_parameters=theta()),
    "qwen2": lambda n: make_transformers(n, Qwen2Config, Qwen2ForCausalLM, 40, rope_parameters=theta(),
                                         use_sliding_window=True, sliding_window=13, max_window_layers=1),
    "qwen3": lambda n: make_transformers(n, Qwen3Config, Qwen3ForCausalLM, 50, head_dim=12, rope_parameters=theta()),
    "smollm2": lambda n: make_transformers(n, LlamaConfig, LlamaForCausalLM, 60, tie_word_embeddings=True,
                                           rope_parameters=dict(rope_theta=100000.0, rope_type="default")),
    "skywork-13b": lambda n: make_transformers(n, LlamaConfig, LlamaForCausalLM, 70, num_key_value_heads=4,
                                               rope_parameters=theta(), change_config=skywork),
    "mixtral": mixtral,
    "qwen2-moe": qwen2_moe,
    # Dense layers between those with experts.
    "qwen3-moe": lambda n: make_moe(n, Qwen3MoeConfig, Qwen3MoeForCausalLM, 142, QWEN_NAMES, head_dim=12,
                                    moe_intermediate_size=20, num_experts=8, num_experts_per_tok=3, norm_topk_prob=True,
                                    decoder_sparse_step=2, num_hidden_layers=4, rope_parameters=theta()),
    "olmoe": lambda n: make_moe(n, OlmoeConfig, OlmoeForCausalLM, 150, QWEN_NAMES, intermediate_size=20, num_experts=6,
                                num_experts_per_tok=2, norm_topk_prob=False, rope_parameters=theta()),
    "skywork-moe": lambda n: plain(n, 90),
    "skywork-moe-lambda2": lambda n: plain(n, 110, moe_gate_norm_std=2.0, num_experts=[4], num_hidden_layers=1),
    # The settings that the release has but does not use.
    "skywork-moe-gate2": lambda n: plain(n, 160, moe_2layer_gate=True, moe_use_skywork_gating=True, moe_feature_no_mul_topk=False),
    # The settings that are ours: DeepSeek-V3's way to route, and a shared expert, in every second layer.
    "skywork-moe-sigmoid": lambda n: plain(
        n, 170, moe_use_logits_norm=False, moe_scoring="sigmoid", moe_num_groups=4, moe_top_groups=2, num_experts=[8],
        num_experts_per_tok=3, moe_routed_scaling_factor=1.7, moe_selection_bias=True, moe_shared_expert_intermediate_size=14,
        moe_shared_expert_gate=True, moe_shared_expert_scaling_factor=0.7, moe_expert_interval=2,
        moe_expert_intermediate_size=12),
}


def main():
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    names = sys.argv[1:] or [*MODELS, "rope"]
    for name in names:
        rope_table() if name == "rope" else MODELS[name](name)


if __name__ == "__main__":
    main()
