/**
 * From languages of bytes to tokens: which tokens of a vocabulary keep a text within a schema. Tokens lie sorted by their bytes,
 * so one walk over them follows each common beginning once. Masks are kept by state, for all requests with the same schema.
 */
import type { Tokenizer } from "../../tokenizer/tokenizer.ts";
import { MoeError } from "../../util/errors.ts";
import type { TokenConstraint } from "../request.ts";
import { nothing, type Expression, type Grammar } from "./grammar.ts";
import { compileAnyObject, compileJsonSchema, type CompiledSchema } from "./json-schema.ts";

/** States of a schema whose masks are kept; a mask is a bit a token. */
const keptMasks = 512;
const keptSchemas = 32;

/** The tokens of a vocabulary that stand for bytes of a text, sorted by them. */
class SortedTokens {
  readonly vocabSize: number;
  readonly ids: Int32Array;
  readonly bytes: readonly Uint8Array[];
  /** Bytes that each token has in common with the one before it. */
  readonly shared: Int32Array;
  readonly #byId: (Uint8Array | undefined)[] = [];

  constructor(tokenizer: Tokenizer, vocabSize: number) {
    const control = new Set([...tokenizer.endIds, ...tokenizer.specialTokens.values()]);
    const entries: { id: number; bytes: Uint8Array }[] = [];
    for (let id = 0; id < Math.min(vocabSize, tokenizer.vocabSize); id++) {
      const bytes = control.has(id) ? new Uint8Array() : tokenizer.idToBytes(id);
      if (bytes.length === 0) continue;
      entries.push({ id, bytes });
      this.#byId[id] = bytes;
    }
    entries.sort((a, b) => Buffer.compare(a.bytes, b.bytes));
    this.vocabSize = vocabSize;
    this.ids = Int32Array.from(entries, ({ id }) => id);
    this.bytes = entries.map(({ bytes }) => bytes);
    this.shared = Int32Array.from(entries, ({ bytes }, i) => commonLength(bytes, entries[i - 1]?.bytes ?? new Uint8Array()));
  }
  bytesOf(id: number): Uint8Array {
    return this.#byId[id] ?? new Uint8Array();
  }
}
function commonLength(a: Uint8Array, b: Uint8Array): number {
  let n = 0;
  while (n < a.length && n < b.length && a[n] === b[n]) n++;
  return n;
}

interface Mask {
  readonly mask: Uint32Array;
  readonly endAllowed: boolean;
}

/** A schema with the masks of its states. */
class SchemaMasks {
  readonly root: Expression;
  readonly #grammar: Grammar;
  readonly #tokens: SortedTokens;
  readonly #masks = new Map<Expression, Mask>();

  constructor({ grammar, root }: CompiledSchema, tokens: SortedTokens) {
    this.root = root;
    this.#grammar = grammar;
    this.#tokens = tokens;
  }
  mask(state: Expression): Mask {
    const known = this.#masks.get(state);
    if (known !== undefined) return known;
    const made = { mask: this.#walk(state), endAllowed: this.#grammar.canEnd(state) };
    const [oldest] = this.#masks.keys();
    if (this.#masks.size >= keptMasks && oldest !== undefined) this.#masks.delete(oldest);
    this.#masks.set(state, made);
    return made;
  }
  #walk(state: Expression): Uint32Array {
    const { ids, bytes, shared, vocabSize } = this.#tokens;
    const mask = new Uint32Array(Math.ceil(vocabSize / 32));
    // States after each byte of the token at hand, as far as there are any.
    const states: Expression[] = [state];
    for (let i = 0; i < ids.length; i++) {
      const token = bytes[i] ?? new Uint8Array();
      const common = shared[i] ?? 0;
      // The byte that led nowhere is in this token too.
      if (common >= states.length) continue;
      states.length = common + 1;
      for (let at = common; at < token.length; at++) {
        const next = this.#grammar.step(states[at] ?? nothing, token[at] ?? 0);
        if (next === nothing) break;
        states.push(next);
      }
      if (states.length !== token.length + 1) continue;
      const id = ids[i] ?? 0;
      mask[id >>> 5] = (mask[id >>> 5] ?? 0) | (1 << (id & 31));
    }
    return mask;
  }
  /** The state after a token; `nothing` where it is not allowed. */
  after(state: Expression, id: number): Expression {
    let next = state;
    for (const byte of this.#tokens.bytesOf(id)) next = this.#grammar.step(next, byte);
    return this.#tokens.bytesOf(id).length === 0 ? nothing : next;
  }
}

class SchemaConstraint implements TokenConstraint {
  readonly #masks: SchemaMasks;
  #state: Expression;

  constructor(masks: SchemaMasks, state: Expression) {
    this.#masks = masks;
    this.#state = state;
  }
  allowed(): Mask {
    return this.#masks.mask(this.#state);
  }
  accept(id: number): void {
    const next = this.#masks.after(this.#state, id);
    if (next === nothing) throw new MoeError("internal", `constraint: token ${id} was not allowed`);
    this.#state = next;
  }
  clone(): TokenConstraint {
    return new SchemaConstraint(this.#masks, this.#state);
  }
}

/** Makes constraints for one vocabulary. Schemas that came before are not compiled again. */
export class JsonConstraints {
  readonly #tokens: SortedTokens;
  readonly #schemas = new Map<string, SchemaMasks>();

  /** Sorts the vocabulary: some 0.1 s for 50,000 tokens. `vocabSize` is the model's, which may be padded beyond the tokenizer's. */
  constructor(tokenizer: Tokenizer, vocabSize: number) {
    this.#tokens = new SortedTokens(tokenizer, vocabSize);
  }
  /**
   * A constraint to texts that are valid under a JSON schema. Throws `unsupported` for parts of schemas that are not supported, `configuration`
   * for a schema that is none or that no value satisfies.
   */
  schema(schema: unknown): TokenConstraint {
    return this.#constraint(`schema ${JSON.stringify(schema)}`, () => compileJsonSchema(schema));
  }
  /** A constraint to any JSON object. */
  anyObject(): TokenConstraint {
    return this.#constraint("any object", compileAnyObject);
  }
  #constraint(key: string, compile: () => CompiledSchema): TokenConstraint {
    let masks = this.#schemas.get(key);
    if (masks === undefined) {
      masks = new SchemaMasks(compile(), this.#tokens);
      const [oldest] = this.#schemas.keys();
      if (this.#schemas.size >= keptSchemas && oldest !== undefined) this.#schemas.delete(oldest);
    }
    // The last used goes last.
    this.#schemas.delete(key);
    this.#schemas.set(key, masks);
    return new SchemaConstraint(masks, masks.root);
  }
}
