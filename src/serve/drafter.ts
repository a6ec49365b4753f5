/**
 * Guesses of the next tokens (speculative decoding, arXiv 2211.17192). The engine computes them in the same pass as the token before them and
 * keeps those that it would have chosen itself, so a guess changes how many tokens a step gives, never which.
 *
 * Two kinds: what followed the last few tokens where they stood before in the same text (prompt lookup), and what a smaller model
 * would say.
 */
import { PagedCache, type Decoder, type PagedSequence } from "../model/index.ts";
import { MoeError } from "../util/errors.ts";

export interface DraftRequest {
  /** The same object for the same sequence, step after step. */
  readonly key: object;
  /** Prompt and output so far. */
  readonly ids: readonly number[];
  /** Tokens that are of use at most. */
  readonly limit: number;
}

export interface Drafter extends Disposable {
  /** Guesses for each request, in order; none is fine. */
  propose(requests: readonly DraftRequest[]): readonly (readonly number[])[];
  /** The sequence has ended, or lost its place; it may come back. */
  release(key: object): void;
}

export interface NgramOptions {
  /** Tokens of the end that must have stood before, longest first. Default 4 to 2. */
  readonly longest?: number;
  readonly shortest?: number;
}

/** Guesses that a text goes on as it did where its last tokens stood before. Costs nothing but comparisons. */
export class NgramDrafter implements Drafter {
  readonly #longest: number;
  readonly #shortest: number;

  constructor({ longest = 4, shortest = 2 }: NgramOptions = {}) {
    if (!(Number.isSafeInteger(shortest) && shortest >= 1 && Number.isSafeInteger(longest) && longest >= shortest))
      throw new MoeError("configuration", `n-gram drafter: expected 1 <= shortest <= longest, got ${shortest} and ${longest}`);
    this.#longest = longest;
    this.#shortest = shortest;
  }
  propose(requests: readonly DraftRequest[]): number[][] {
    return requests.map(({ ids, limit }) => {
      for (let n = this.#longest; n >= this.#shortest; n--) {
        const at = lastOccurrence(ids, n);
        // Where that reaches the end, the repetition goes on.
        if (at >= 0) return Array.from({ length: limit }, (_, j) => ids[at + n + (j % (ids.length - at - n))] ?? 0);
      }
      return [];
    });
  }
  release(): void {}
  [Symbol.dispose](): void {}
}

/** Where the last `n` ids stood before, the latest place; -1 for nowhere. */
function lastOccurrence(ids: readonly number[], n: number): number {
  const end = ids.length - n;
  for (let at = end - 1; at >= 0; at--) {
    let same = 0;
    while (same < n && ids[at + same] === ids[end + same]) same++;
    if (same === n) return at;
  }
  return -1;
}

/** A sequence as the draft model has it. */
interface Drafted {
  readonly sequence: PagedSequence;
  /** Tokens in the draft model's cache. */
  ids: number[];
}

/** Tokens of one pass of the draft model at most, except that each sequence gets one. */
const passTokens = 512;

/**
 * Guesses what a smaller model with the same vocabulary would say, always its most probable token. All sequences draft in one batch. One that
 * its cache has no room for gets no guesses.
 */
export class ModelDrafter implements Drafter {
  readonly #model: Decoder;
  readonly #cache: PagedCache;
  readonly #sequences = new Map<object, Drafted>();

  /** The caller keeps the model. Throws `configuration` where the bytes hold no block. */
  constructor(model: Decoder, { cacheBytes }: { readonly cacheBytes: number }) {
    const numBlocks = Math.floor(cacheBytes / PagedCache.blockBytes(model.config, model.dtype));
    if (!(numBlocks >= 1)) throw new MoeError("configuration", `draft model: a KV cache of ${cacheBytes} bytes holds no block`);
    this.#model = model;
    this.#cache = new PagedCache(model.engine, model.config, { numBlocks, dtype: model.dtype });
  }
  propose(requests: readonly DraftRequest[]): number[][] {
    const drafts = requests.map((): number[] => []);
    const { vocabSize, maxPositions } = this.#model.config;
    for (let step = 0; ; step++) {
      const due = [...requests.entries()].filter(
        ([i, { ids, limit }]) =>
          limit > step && drafts[i]?.length === step && ids.length + limit < maxPositions && ids.every((id) => id < vocabSize),
      );
      const next = this.#extend(due.map(([i, { key, ids }]) => ({ key, ids: [...ids, ...(drafts[i] ?? [])] })));
      let any = false;
      for (const [n, [i]] of due.entries()) {
        const id = next[n] ?? null;
        if (id === null) continue;
        drafts[i]?.push(id);
        any = true;
      }
      if (!any) return drafts;
    }
  }
  /** The most probable id after each text; null where there is no room for it. */
  #extend(texts: readonly { readonly key: object; readonly ids: readonly number[] }[]): (number | null)[] {
    const found = texts.map((): number | null => null);
    const left = new Set(texts.keys());
    while (left.size > 0) {
      const pass: { i: number; drafted: Drafted; ids: number[] }[] = [];
      let room = passTokens;
      for (const i of left) {
        const text = texts[i];
        const drafted = text === undefined ? null : this.#at(text.key, text.ids);
        const ids = text?.ids.slice(drafted?.ids.length, (drafted?.ids.length ?? 0) + Math.max(1, room)) ?? [];
        if (drafted === null || !this.#cache.reserve(drafted.sequence, ids.length)) left.delete(i);
        else pass.push({ i, drafted, ids });
        room -= ids.length;
      }
      if (pass.length === 0) break;
      const best = this.#pass(pass);
      for (const [n, { i, drafted, ids }] of pass.entries()) {
        drafted.ids.push(...ids);
        if (drafted.ids.length < (texts[i]?.ids.length ?? 0)) continue;
        left.delete(i);
        found[i] = best[n] ?? null;
      }
    }
    return found;
  }
  #pass(pass: readonly { readonly drafted: Drafted; readonly ids: readonly number[] }[]): Int32Array {
    const { engine, config } = this.#model;
    return engine.scope(() => {
      const batch = this.#cache.extend(pass.map(({ drafted, ids }) => ({ sequence: drafted.sequence, ids })));
      const { hidden_TH } = this.#model.forwardHidden(batch, { cache: this.#cache });
      let row = -1;
      const logits = this.#model.logits(
        hidden_TH,
        pass.map(({ ids }) => (row += ids.length)),
      );
      const best = engine.empty([pass.length], "i32");
      engine.backend.kernels.argmaxRows(best.ptr, logits.ptr, pass.length, config.vocabSize);
      return best.toInt32Array();
    });
  }
  /** The sequence of a key, holding only what these ids begin with, and not all of them. */
  #at(key: object, ids: readonly number[]): Drafted {
    const drafted = this.#sequences.get(key) ?? { sequence: this.#cache.begin([]), ids: [] };
    this.#sequences.set(key, drafted);
    let same = 0;
    while (same < drafted.ids.length && same < ids.length - 1 && drafted.ids[same] === ids[same]) same++;
    if (same < drafted.ids.length) {
      drafted.ids.length = same;
      this.#cache.truncate(drafted.sequence, same);
    }
    return drafted;
  }
  release(key: object): void {
    const drafted = this.#sequences.get(key);
    if (drafted !== undefined) this.#cache.release(drafted.sequence);
    this.#sequences.delete(key);
  }
  [Symbol.dispose](): void {
    this.#cache[Symbol.dispose]();
  }
}
