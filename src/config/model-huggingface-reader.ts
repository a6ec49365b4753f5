/**
 * Typed reading of a `config.json` whose keys may be anything: every value is checked where it is asked for, and an error
 * names the file, the key, what was expected and what stands there. It also knows the keys that must not be ignored.
 */
import { MoeError } from "../util/errors.ts";

/** Keys that change the computation, and the values under which they do not (absent and null always pass). */
const harmlessValues: Readonly<Record<string, readonly unknown[]>> = {
  hidden_act: ["silu", "swish"],
  quantization_config: [],
  attention_bias: [false],
  mlp_bias: [false],
  partial_rotary_factor: [1],
  final_logit_softcapping: [],
  attn_logit_softcapping: [],
  logit_scale: [1],
  embedding_multiplier: [1],
  residual_multiplier: [1],
  attention_multiplier: [],
  no_rope_layers: [],
  rope_interleaved: [false],
  clip_qkv: [],
  num_shared_experts: [0],
  n_shared_experts: [0],
};

/** FP8 changes how weights are stored, which is not the configuration's; whoever reads them looks closer (src/quant/config.ts). */
function isFp8(value: unknown): boolean {
  const method = typeof value === "object" && value !== null && "quant_method" in value ? value.quant_method : undefined;
  return method === "fp8" || method === "compressed-tensors";
}

export class HuggingFaceReader {
  readonly path: string;
  readonly #json: Readonly<Record<string, unknown>>;

  /** Throws `configuration` when `json` is not an object. */
  constructor(json: unknown, path: string) {
    this.path = path;
    if (typeof json !== "object" || json === null || Array.isArray(json)) {
      throw new MoeError("configuration", `${path}: expected a JSON object, got ${describe(json)}`);
    }
    this.#json = json as Record<string, unknown>;
  }

  error(text: string): MoeError {
    return new MoeError("configuration", `${this.path}: ${text}`);
  }
  /** Runs `fn`; a configuration error gets the file's name in front. */
  located<T>(fn: () => T): T {
    try {
      return fn();
    } catch (error) {
      if (error instanceof MoeError && error.kind === "configuration" && !error.message.startsWith(this.path))
        throw this.error(error.message);
      throw error;
    }
  }
  /** Throws `unsupported` where a key asks for a computation that is not built. */
  requireSupported({ attentionBiasIsImplied }: { attentionBiasIsImplied: boolean }): void {
    for (const [key, harmless] of Object.entries(harmlessValues)) {
      const value = this.#json[key];
      if (value === undefined || value === null || harmless.includes(value)) continue;
      if (key === "attention_bias" && attentionBiasIsImplied) continue;
      if (key === "quantization_config" && isFp8(value)) continue;
      const allowed = harmless.length === 0 ? "it absent" : JSON.stringify(harmless[0]);
      throw new MoeError("unsupported", `${this.path}: ${key} ${JSON.stringify(value)} is not supported (expected ${allowed})`);
    }
  }

  /** True where the key is there, whatever it says (null included). */
  has(key: string): boolean {
    return Object.hasOwn(this.#json, key);
  }
  /** The value, undefined where absent. */
  value(key: string): unknown {
    return this.#json[key];
  }
  /** A non-negative integer; absent or null gives `absent`, or an error where there is none. */
  integer(key: string, absent?: number): number {
    return this.integerFrom(key, this.#json[key], absent);
  }
  integerFrom(key: string, value: unknown, absent?: number): number {
    const number = this.#numberFrom(key, value, absent);
    if (!Number.isSafeInteger(number) || number < 0) throw this.error(`${key}: expected a non-negative integer, got ${number}`);
    return number;
  }
  number(key: string, absent?: number): number {
    return this.#numberFrom(key, this.#json[key], absent);
  }
  #numberFrom(key: string, value: unknown, absent?: number): number {
    if (value === undefined || value === null) {
      if (absent === undefined) throw this.error(`expected "${key}" (a number); it has none`);
      return absent;
    }
    if (typeof value !== "number" || !Number.isFinite(value)) throw this.error(`${key}: expected a number, got ${describe(value)}`);
    return value;
  }
  boolean(key: string, absent: boolean): boolean {
    const value = this.#json[key] ?? absent;
    if (typeof value !== "boolean") throw this.error(`${key}: expected true or false, got ${describe(value)}`);
    return value;
  }
  requiredBoolean(key: string): boolean {
    if (this.#json[key] === undefined) throw this.error(`expected "${key}" (true or false): the model cannot be computed without it`);
    return this.boolean(key, false);
  }
  optionalString(key: string): string | null {
    const value = this.#json[key] ?? null;
    if (value !== null && typeof value !== "string") throw this.error(`${key}: expected a string, got ${describe(value)}`);
    return value;
  }
  strings(key: string): readonly string[] | null {
    const value = this.#json[key] ?? null;
    if (value === null) return null;
    if (!Array.isArray(value) || !value.every((item) => typeof item === "string")) {
      throw this.error(`${key}: expected a list of strings, got ${describe(value)}`);
    }
    return value;
  }
  /** A token id or a list of them. Absent: `absent`; null: none. */
  tokenIds(key: string, absent: number | null): number[] {
    const value = this.has(key) ? this.#json[key] : absent;
    if (value === undefined || value === null) return [];
    return [value].flat().map((id) => {
      if (typeof id !== "number" || !Number.isSafeInteger(id)) throw this.error(`${key}: expected token ids, got ${describe(value)}`);
      return id;
    });
  }
  /** A nested object, or null where absent or null. Its errors name the key. */
  object(key: string): HuggingFaceReader | null {
    const value = this.#json[key] ?? null;
    return value === null ? null : new HuggingFaceReader(value, `${this.path}, ${key}`);
  }
  get keys(): string[] {
    return Object.keys(this.#json);
  }
}

function describe(value: unknown): string {
  const text = JSON.stringify(value) ?? "nothing";
  return text.length > 80 ? `${text.slice(0, 80)}...` : text;
}
