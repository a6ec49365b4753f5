"""Writes blocks.gguf and values.gguf with the `gguf` package of PyPI, and the same tensors dequantized by it.

blocks.gguf: one tensor of random blocks of each storage type, scales made to bite (negative, subnormal, zero, large).
blocks.f32.gguf: the same tensors as gguf.quants.dequantize gives them.
values.gguf: metadata of every value type, a nested array, an alignment of 64 and a tensor without dequantization here.
quantized-model.gguf: a Llama of one layer with quantized matrices.
Run as `python make.py` in this folder; the bytes do not change from run to run.
"""

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Q
from gguf import GGUFValueType as V
from gguf import quants

ROWS, COLUMNS = 3, 512
random = np.random.default_rng(20240601)
# Where the f16 scales of a block are, so that they are finite numbers of every size rather than random bits.
SCALES = {Q.Q8_0: [0], Q.Q4_0: [0], Q.Q4_1: [0, 2], Q.Q4_K: [0, 2], Q.Q6_K: [208], Q.Q5_K: [0, 2]}


def random_blocks(kind: Q) -> np.ndarray:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    raw = random.integers(0, 256, (ROWS * COLUMNS // block, size), dtype=np.uint8)
    for at in SCALES[kind]:
        scale = random.standard_normal(len(raw)) * 10.0 ** random.uniform(-7, 2, len(raw))
        scale[: len(raw) // 6] = 0
        raw[:, at : at + 2] = scale.astype(np.float16).view(np.uint8).reshape(-1, 2)
    return raw.reshape(ROWS, -1)


def plain(kind: Q) -> np.ndarray:
    values = random.standard_normal((ROWS, COLUMNS)) * 10.0 ** random.uniform(-8, 4, (ROWS, COLUMNS))
    return quants.quantize(values.astype(np.float32), kind)


blocks = gguf.GGUFWriter("blocks.gguf", "llama")
floats = gguf.GGUFWriter("blocks.f32.gguf", "llama")
for kind in [Q.F32, Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0, Q.Q4_1, Q.Q4_K, Q.Q6_K]:
    data = random_blocks(kind) if kind in SCALES else plain(kind)
    blocks.add_tensor(f"{kind.name}.weight", data, raw_dtype=kind)
    floats.add_tensor(f"{kind.name}.weight", np.ascontiguousarray(quants.dequantize(data, kind), dtype=np.float32))
for writer in (blocks, floats):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

values = gguf.GGUFWriter("values.gguf", "test")
values.add_custom_alignment(64)
values.add_uint8("v.uint8", 200)
values.add_int8("v.int8", -100)
values.add_uint16("v.uint16", 60000)
values.add_int16("v.int16", -30000)
values.add_uint32("v.uint32", 4000000000)
values.add_int32("v.int32", -2000000000)
values.add_float32("v.float32", 0.1)
values.add_bool("v.bool", True)
values.add_string("v.string", "混合 専門家 🦙")
values.add_uint64("v.uint64", 2**64 - 1)
values.add_int64("v.int64", -(2**63))
values.add_float64("v.float64", 0.1)
values.add_array("v.array.string", ["a", "", "é"])
values.add_array("v.array.bool", [True, False])
values.add_array("v.array.float", [0.5, -2.0])
values.add_array("v.array.int", [1, -2, 3])
values.add_array("v.array.nested", [[1, 2], [3]])
values.add_key_value("v.array.uint64", [2**63, 1], V.ARRAY, sub_type=V.UINT64)
values.add_tensor("odd", np.arange(5, dtype=np.float32))
values.add_tensor("deep", np.arange(24, dtype=np.float32).reshape(2, 3, 4))
values.add_tensor("q5", random_blocks(Q.Q5_K), raw_dtype=Q.Q5_K)
values.write_header_to_file()
values.write_kv_data_to_file()
values.write_tensors_to_file()
values.close()

model = gguf.GGUFWriter("quantized-model.gguf", "llama")
model.add_block_count(1)
model.add_context_length(128)
model.add_embedding_length(64)
model.add_feed_forward_length(96)
model.add_head_count(2)
model.add_head_count_kv(1)
model.add_layer_norm_rms_eps(1e-5)
model.add_rope_dimension_count(32)
model.add_bos_token_id(1)
model.add_eos_token_id(2)


def add(name: str, kind: Q, *shape: int) -> None:
    model.add_tensor(name, quants.quantize(random.standard_normal(shape, dtype=np.float32), kind), raw_dtype=kind)


add("token_embd.weight", Q.Q8_0, 96, 64)
add("output_norm.weight", Q.F32, 64)
add("blk.0.attn_norm.weight", Q.F32, 64)
add("blk.0.attn_q.weight", Q.Q4_1, 64, 64)
add("blk.0.attn_k.weight", Q.Q4_0, 32, 64)
add("blk.0.attn_v.weight", Q.Q4_1, 32, 64)
add("blk.0.attn_output.weight", Q.F16, 64, 64)
add("blk.0.ffn_norm.weight", Q.F32, 64)
add("blk.0.ffn_gate.weight", Q.BF16, 96, 64)
add("blk.0.ffn_up.weight", Q.Q4_1, 96, 64)
add("blk.0.ffn_down.weight", Q.Q8_0, 64, 96)
model.write_header_to_file()
model.write_kv_data_to_file()
model.write_tensors_to_file()
model.close()
