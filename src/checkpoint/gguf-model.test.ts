import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import * as fc from "fast-check";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { exportGguf, huggingFaceToGguf } from "./gguf-export.ts";
import type { HuggingFaceSource } from "./gguf-export.ts";
import { ggufRowOf, ggufToHuggingFace, huggingFaceRowOf, llama3Divisors } from "./gguf-model.ts";
import type { GgufDescription } from "./gguf-model.ts";
import type { GgufValue } from "./gguf-types.ts";
import { GgufWeights, openGgufWeights } from "./gguf-weights.ts";
import { openGguf } from "./gguf.ts";

let directory = "";
beforeEach(() => {
  directory = fs.mkdtempSync(path.join(os.tmpdir(), "moe-gguf-model-"));
});
afterEach(() => {
  fs.rmSync(directory, { recursive: true, force: true });
});

const BASE = {
  hidden_size: 8,
  intermediate_size: 12,
  num_hidden_layers: 2,
  num_attention_heads: 2,
  num_key_value_heads: 1,
  head_dim: 6,
  rms_norm_eps: 1e-5,
  rope_theta: 10_000,
  rope_scaling: null as Record<string, unknown> | null,
  max_position_embeddings: 64,
  vocab_size: 10,
  tie_word_embeddings: false,
};
const LLAMA3 = { rope_type: "llama3", factor: 8, low_freq_factor: 1, high_freq_factor: 4, original_max_position_embeddings: 16 } as const;
const CONFIGS = {
  llama: { ...BASE, model_type: "llama" },
  "llama, tied, with Llama 3 scaling": { ...BASE, model_type: "llama", tie_word_embeddings: true, rope_scaling: LLAMA3 },
  "llama, linear scaling": { ...BASE, model_type: "llama", rope_scaling: { rope_type: "linear", factor: 4 } },
  "qwen3, yarn": { ...BASE, model_type: "qwen3", rope_scaling: { rope_type: "yarn", factor: 4, original_max_position_embeddings: 16 } },
  mistral: { ...BASE, model_type: "mistral", sliding_window: 16 },
  qwen2: { ...BASE, model_type: "qwen2" },
  mixtral: { ...BASE, model_type: "mixtral", sliding_window: null, num_local_experts: 3, num_experts_per_tok: 2 },
};
type TestConfig = typeof BASE & { model_type: string; num_local_experts?: number };

/** Hugging Face tensors of a model: every element is a different small whole number, exact in bf16 only by chance. */
class Source implements HuggingFaceSource {
  readonly tensors = new Map<string, { shape: readonly number[] }>();
  readonly values = new Map<string, Float32Array>();

  constructor(c: TestConfig) {
    const { hidden_size: H, intermediate_size: F, head_dim: D, vocab_size: V } = c;
    const [Q, K] = [c.num_attention_heads * D, c.num_key_value_heads * D];
    this.#add("model.embed_tokens.weight", [V, H]);
    this.#add("model.norm.weight", [H]);
    if (!c.tie_word_embeddings) this.#add("lm_head.weight", [V, H]);
    for (let layer = 0; layer < c.num_hidden_layers; layer++) {
      const add = (name: string, ...shape: number[]): void => this.#add(`model.layers.${layer}.${name}`, shape);
      add("input_layernorm.weight", H);
      add("post_attention_layernorm.weight", H);
      add("self_attn.q_proj.weight", Q, H);
      add("self_attn.k_proj.weight", K, H);
      add("self_attn.v_proj.weight", K, H);
      add("self_attn.o_proj.weight", H, Q);
      if (c.model_type === "qwen2")
        for (const [p, n] of [
          ["q", Q],
          ["k", K],
          ["v", K],
        ] as const)
          add(`self_attn.${p}_proj.bias`, n);
      if (c.model_type === "qwen3") for (const p of ["q", "k"]) add(`self_attn.${p}_norm.weight`, D);
      if (c.num_local_experts === undefined) {
        for (const [name, ...shape] of [
          ["gate", F, H],
          ["up", F, H],
          ["down", H, F],
        ] as const)
          add(`mlp.${name}_proj.weight`, ...shape);
        continue;
      }
      add("block_sparse_moe.gate.weight", c.num_local_experts, H);
      for (let e = 0; e < c.num_local_experts; e++) {
        for (const [name, ...shape] of [
          ["w1", F, H],
          ["w2", H, F],
          ["w3", F, H],
        ] as const)
          add(`block_sparse_moe.experts.${e}.${name}.weight`, ...shape);
      }
    }
  }

  #add(name: string, shape: readonly number[]): void {
    const start = this.values.size * 1000;
    this.tensors.set(name, { shape });
    this.values.set(
      name,
      Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, (_, i) => start + i),
    );
  }

  readFloat32(name: string, into: Float32Array, from = 0): void {
    into.set((this.values.get(name) ?? new Float32Array()).subarray(from, from + into.length));
  }
}

function exported(config: TestConfig): { source: Source; target: string } {
  const source = new Source(config);
  const target = path.join(directory, "model.gguf");
  exportGguf(target, source, config, { type: "F32" });
  return { source, target };
}

describe("the order of rows within a head", () => {
  it("is the one of llama.cpp's converter: reshape to [heads, 2, d/2], swap, flatten", () => {
    const [heads, d] = [3, 8];
    const converted: number[] = [];
    for (let h = 0; h < heads; h++) for (let i = 0; i < d / 2; i++) for (let j = 0; j < 2; j++) converted.push(h * d + (j * d) / 2 + i);
    expect(converted.slice(0, 8)).toEqual([0, 4, 1, 5, 2, 6, 3, 7]);
    expect(converted.map((_, row) => huggingFaceRowOf(row, d))).toEqual(converted);
    expect(converted.map((row) => ggufRowOf(row, d))).toEqual(converted.map((_, row) => row));
  });
});

describe("a model exported to GGUF", () => {
  it.each(Object.entries(CONFIGS))("and read again is the same, any range of any tensor: %s", (_, config) => {
    const { source, target } = exported(config);
    using weights = openGgufWeights(target);
    expect([...weights.tensors.keys()].sort()).toEqual([...source.tensors.keys()].sort());
    expect(weights.config).toMatchObject(config);
    for (const [name, { shape }] of source.tensors) expect([name, weights.entry(name).shape]).toEqual([name, shape]);
    fc.assert(
      fc.property(fc.constantFrom(...source.values), fc.nat(200), fc.nat(200), ([name, values], a, b) => {
        const from = a % values.length;
        const piece = new Float32Array(Math.min(b, values.length - from));
        weights.readFloat32(name, piece, from);
        expect(piece).toEqual(values.subarray(from, from + piece.length));
      }),
      { numRuns: 200 },
    );
  });

  it("has llama.cpp's names, row order, stacked experts and F32 where llama.cpp wants it", () => {
    const source = new Source(CONFIGS.mixtral);
    const target = path.join(directory, "mixtral.gguf");
    exportGguf(target, source, CONFIGS.mixtral, {
      type: "BF16",
      name: "Mix",
      metadata: new Map<string, GgufValue>([["tokenizer.ggml.model", { type: "string", value: "none" }]]),
    });
    using file = openGguf(target);
    expect(file.entry("blk.1.ffn_down_exps.weight")).toMatchObject({ type: "BF16", shape: [3, 8, 12] });
    expect(file.entry("blk.1.ffn_gate_inp.weight")).toMatchObject({ type: "F32", shape: [3, 8] });
    expect(file.entry("blk.0.attn_norm.weight").type).toBe("F32");
    expect(file.metadata.get("general.name")).toEqual({ type: "string", value: "Mix" });
    expect(file.metadata.get("general.file_type")).toEqual({ type: "uint32", value: 32 });
    expect(file.metadata.get("llama.expert_used_count")).toEqual({ type: "uint32", value: 2 });
    expect(file.metadata.get("tokenizer.ggml.model")).toEqual({ type: "string", value: "none" });
    const { target: plain, source: values } = exported(CONFIGS.llama);
    using f32 = openGguf(plain);
    const row = new Float32Array(8);
    f32.readFloat32("blk.0.attn_q.weight", row, 8); // GGUF row 1 is Hugging Face row 3 of a head of 6
    expect(row).toEqual(values.values.get("model.layers.0.self_attn.q_proj.weight")?.slice(24, 32));
    const down = new Float32Array(8);
    f32.readFloat32("blk.1.attn_v.weight", down, 8);
    expect(down).toEqual(values.values.get("model.layers.1.self_attn.v_proj.weight")?.slice(8, 16));
  });

  it("does not carry the head of tied embeddings", () => {
    const config = { ...CONFIGS.llama, tie_word_embeddings: true };
    const plan = huggingFaceToGguf(config, new Source(CONFIGS.llama).tensors, "F16");
    expect(plan.tensors.some(({ ggufName }) => ggufName === "output.weight")).toBe(false);
  });
});

describe("a quantized model", () => {
  // One layer, made by the gguf package (test/golden/gguf/make.py): hidden 64, 2 heads of 32, Q8_0, Q4_0 and Q4_1.
  const target = path.join(import.meta.dirname, "../../test/golden/gguf/quantized-model.gguf");

  it("gives any range of any tensor, also where it cuts blocks and heads", () => {
    using weights = openGgufWeights(target);
    expect(weights.config).toMatchObject({
      model_type: "llama",
      head_dim: 32,
      vocab_size: 96,
      num_key_value_heads: 1,
      tie_word_embeddings: true,
      bos_token_id: 1,
      eos_token_id: 2,
    });
    const whole = new Map<string, Float32Array>();
    for (const [name, { ggufName, shape }] of weights.tensors) {
      const stored = new Float32Array(shape.reduce((a, b) => a * b, 1));
      weights.file.readFloat32(ggufName, stored);
      const values = stored.slice();
      if (name.includes("q_proj") || name.includes("k_proj")) {
        for (let row = 0; row < stored.length / 64; row++)
          values.set(stored.subarray(row * 64, row * 64 + 64), huggingFaceRowOf(row, 32) * 64);
        expect(values).not.toEqual(stored);
      }
      whole.set(name, values);
    }
    expect(whole.size).toBe(11);
    fc.assert(
      fc.property(fc.constantFrom(...whole), fc.nat(8000), fc.oneof(fc.nat(70), fc.nat(8000)), ([name, values], a, b) => {
        const from = a % values.length;
        const piece = new Float32Array(Math.min(b, values.length - from));
        weights.readFloat32(name, piece, from);
        expect(Buffer.compare(Buffer.from(piece.buffer), Buffer.from(values.slice(from, from + piece.length).buffer))).toBe(0);
      }),
      { numRuns: 300 },
    );
    expect(() => weights.readFloat32("model.norm.weight", new Float32Array(1), 64)).toThrow(
      "within the 64 elements of model.norm.weight, got 64 to 65",
    );
    expect(() => weights.entry("model.norm.weigth")).toThrow('did you mean "model.norm.weight"?');
  });
});

describe("Llama 3's divisors", () => {
  it("are those of transformers for Llama 3.1 8B", () => {
    // transformers' _compute_llama3_parameters: inv_freq of the default rotation over its scaled one, head 128, theta 500000.
    const scaling = { ...LLAMA3, original_max_position_embeddings: 8192 } as const;
    const divisors = llama3Divisors(128, 500_000, scaling);
    expect(divisors).toHaveLength(64);
    for (const [index, value] of Object.entries(EXPECTED_DIVISORS))
      expect(Math.abs((divisors[Number(index)] ?? 0) / value - 1)).toBeLessThan(1e-5);
  });

  it("that are of no Llama 3 are refused", () => {
    const { target } = exported(CONFIGS["llama, tied, with Llama 3 scaling"]);
    using file = openGguf(target);
    const describe = (ropeFreqs: Float32Array): GgufDescription => ({
      path: "x.gguf",
      metadata: file.metadata,
      tensors: file.tensors,
      ropeFreqs,
    });
    expect(() => ggufToHuggingFace(describe(new Float32Array([1, 1.5, 8])))).toThrow(
      "x.gguf: expected rope_freqs.weight to be a scaling of Llama 3",
    );
  });
});

// transformers 5, ROPE_INIT_FUNCTIONS["llama3"], divided in f64.
const EXPECTED_DIVISORS: Readonly<Record<number, number>> = {
  0: 1,
  20: 1,
  28: 1,
  29: 1.207484,
  30: 1.553414,
  31: 2.026313,
  32: 2.69453,
  33: 3.684254,
  34: 5.257327,
  35: 8,
  36: 8,
  63: 8,
};

describe("an old GGUF file with a tensor for each expert", () => {
  it("has the same Hugging Face names", () => {
    const { target } = exported(CONFIGS.mixtral);
    using file = openGguf(target);
    const tensors = new Map<string, { shape: readonly number[] }>();
    for (const [name, { shape }] of file.tensors) {
      if (!name.includes("_exps")) tensors.set(name, { shape });
      else for (let e = 0; e < 3; e++) tensors.set(name.replace("_exps", `.${e}`), { shape: shape.slice(1) });
    }
    const { pieces } = ggufToHuggingFace({ path: "old.gguf", metadata: file.metadata, tensors, ropeFreqs: null });
    expect([...pieces.keys()].sort()).toEqual([...new Source(CONFIGS.mixtral).tensors.keys()].sort());
    expect(pieces.get("model.layers.1.block_sparse_moe.experts.2.w2.weight")).toEqual({
      ggufName: "blk.1.ffn_down.2.weight",
      shape: [8, 12],
      firstElement: 0,
      reorderedHeadDim: null,
    });
  });
});

function refusal(change: (metadata: Map<string, GgufValue>, tensors: Map<string, { shape: readonly number[] }>) => void): string {
  const { target } = exported(CONFIGS.llama);
  using file = openGguf(target);
  const metadata = new Map(file.metadata);
  const tensors = new Map<string, { shape: readonly number[] }>(file.tensors);
  change(metadata, tensors);
  try {
    ggufToHuggingFace({ path: "x.gguf", metadata, tensors, ropeFreqs: null });
  } catch (error) {
    return error instanceof Error && "kind" in error ? `${String(error.kind)}: ${error.message}` : String(error);
  }
  return "accepted";
}
const u32 = (value: number): GgufValue => ({ type: "uint32", value });
const text = (value: string): GgufValue => ({ type: "string", value });

describe("a GGUF model that is not ours", () => {
  it.each<[string, string, (m: Map<string, GgufValue>, t: Map<string, { shape: readonly number[] }>) => void]>([
    [
      "another architecture",
      'unsupported: x.gguf: expected general.architecture to be one of llama, qwen2, qwen3, qwen2moe, qwen3moe, olmoe, got "gemma"',
      (m) => m.set("general.architecture", text("gemma")),
    ],
    ["no architecture", "file: x.gguf: expected a string general.architecture, got none", (m) => m.delete("general.architecture")],
    ["a missing count", "file: x.gguf: expected metadata llama.block_count, got none", (m) => m.delete("llama.block_count")],
    [
      "a count that is text",
      "file: x.gguf: expected llama.block_count to be a number, got string two",
      (m) => m.set("llama.block_count", text("two")),
    ],
    ["a negative count", "to be a non-negative integer, got -1", (m) => m.set("llama.block_count", { type: "int32", value: -1 })],
    [
      "layers that differ",
      "unsupported: x.gguf: expected llama.attention.head_count to be one number",
      (m) => m.set("llama.attention.head_count", { type: "array", elementType: "int32", values: [1, 2] }),
    ],
    ["a partial rotation", "to equal the head dimension 6, got 4 and 6", (m) => m.set("llama.rope.dimension_count", u32(4))],
    ["an odd head", "file: x.gguf: expected an even head dimension, got 5", (m) => m.set("llama.attention.key_length", u32(5))],
    [
      "an unknown scaling",
      'unsupported: x.gguf: expected rope.scaling.type to be none, linear or yarn, got "longrope"',
      (m) => m.set("llama.rope.scaling.type", text("longrope")),
    ],
    ["no embedding", "file: x.gguf: expected a tensor token_embd.weight, got none", (_, t) => t.delete("token_embd.weight")],
    [
      "an unknown tensor",
      'unsupported: x.gguf: expected tensors of a llama model, got also "blk.0.ssm_a"',
      (_, t) => t.set("blk.0.ssm_a", { shape: [1] }),
    ],
    [
      "a tensor named like a property of every object",
      'got also "blk.0.constructor.weight"',
      (_, t) => t.set("blk.0.constructor.weight", { shape: [1] }),
    ],
    [
      "heads cut in two",
      "rows of blk.0.attn_q.weight to be whole heads of 6, got shape [8, 8]",
      (_, t) => t.set("blk.0.attn_q.weight", { shape: [8, 8] }),
    ],
    [
      "an expert twice",
      "expected one tensor for model.layers.0.block_sparse_moe.experts.0.w1.weight",
      (_, t) => t.set("blk.0.ffn_gate_exps.weight", { shape: [1, 2, 2] }).set("blk.0.ffn_gate.0.weight", { shape: [2, 2] }),
    ],
  ])("with %s", (_, message, change) => {
    expect(refusal(change)).toContain(message);
  });

  it("closes the file when it is refused", () => {
    const file = openGguf(path.join(import.meta.dirname, "../../test/golden/gguf/values.gguf"));
    expect(() => new GgufWeights(file)).toThrow('got "test"');
    expect(() => file.read("odd", new Uint8Array(1))).toThrow("after the file was closed");
  });
});

const plan = (change: Record<string, unknown>, edit?: (tensors: Source["tensors"]) => void): void => {
  const { tensors } = new Source(CONFIGS.mixtral);
  edit?.(tensors);
  huggingFaceToGguf({ ...CONFIGS.mixtral, ...change }, tensors, "F16");
};
describe("a model that llama.cpp would compute differently is not exported", () => {
  it.each<[string, Record<string, unknown>, string]>([
    [
      "another model type",
      { model_type: "skywork_moe" },
      'one of llama, mistral, mixtral, skywork, qwen2, qwen3, qwen2_moe, qwen3_moe, olmoe, got "skywork_moe"',
    ],
    ["a window of Qwen", { model_type: "qwen2", use_sliding_window: true }, "without a sliding window"],
    ["a dynamic scaling", { rope_scaling: { rope_type: "dynamic", factor: 2 } }, 'got "dynamic"'],
    ["a yarn of its own", { rope_scaling: { rope_type: "yarn", factor: 2, beta_fast: 16 } }, "yarn with others"],
    ["a missing key", { hidden_size: undefined }, "expected hidden_size in config.json to be a number, got undefined"],
  ])("%s", (_, change, message) => {
    expect(() => plan(change)).toThrow(message);
  });

  it("nor one with missing, misshapen or unknown tensors", () => {
    const expert = "model.layers.1.block_sparse_moe.experts.1.w1.weight";
    expect(() => plan({}, (t) => t.delete(expert))).toThrow("expected experts 0 to 2 for blk.1.ffn_gate_exps.weight, got no expert 1");
    expect(() => plan({}, (t) => t.set(expert, { shape: [1, 1] }))).toThrow(`to be [12, 8], got [1, 1] for ${expert}`);
    expect(() => plan({}, (t) => t.set("model.layers.0.extra.weight", { shape: [1] }))).toThrow('got also "model.layers.0.extra.weight"');
    expect(() => plan({}, (t) => t.delete("model.embed_tokens.weight"))).toThrow("expected a tensor model.embed_tokens.weight, got none");
  });
});
