/**
 * KV cache slots for sequences that share beginnings: a slot is filled with a group's common beginning by a forward pass once,
 * by a copy of another slot's rows after that. Results do not depend on any of this: a token's keys are the same bits
 * however they came into its slot.
 */
import { KvCache, type Decoder } from "../model/index.ts";
import type { Tensor } from "../tensor/index.ts";
import { MoeError } from "../util/errors.ts";
import type { PrefixGroup } from "./plan.ts";

/** New tokens for a slot, and the places in them whose logits are wanted, ascending. */
export interface SlotEntry {
  readonly slot: number;
  readonly ids: Int32Array;
  readonly wanted: readonly number[];
}
/** The rows of `logits` [R, V] f32: row r belongs to `ids[position]` of `entry`. */
export type LogitsVisitor = (rows: readonly { readonly entry: SlotEntry; readonly position: number }[], logits: Tensor) => void;

export interface SlotOptions {
  /** Tokens that a slot can hold. */
  readonly capacity: number;
  /** Slots at most; fewer where `cacheBytes` do not suffice, but at least one. */
  readonly maxSlots: number;
  readonly cacheBytes: number;
  /** Tokens of one forward pass at most. */
  readonly batchTokens: number;
}

/** Bytes of logits that are held at once. */
const logitsBytes = 32 << 20;

export class PrefixSlots implements Disposable {
  readonly numSlots: number;
  readonly #model: Decoder;
  readonly #cache: KvCache;
  readonly #batchTokens: number;
  /** Whose beginning a slot begins with. */
  readonly #groups: (PrefixGroup<unknown> | null)[];

  constructor(model: Decoder, { capacity, maxSlots, cacheBytes, batchTokens }: SlotOptions) {
    const { config, dtype } = model;
    const slotBytes = capacity * config.numLayers * 2 * config.numKvHeads * config.headDim * (dtype === "f32" ? 4 : 2);
    this.numSlots = Math.max(1, Math.min(maxSlots, Math.floor(cacheBytes / slotBytes)));
    this.#model = model;
    this.#batchTokens = batchTokens;
    this.#cache = new KvCache(model.engine, config, { numSequences: this.numSlots, capacity, dtype });
    this.#groups = Array.from({ length: this.numSlots }, () => null);
  }

  holds(slot: number, group: PrefixGroup<unknown>): boolean {
    return this.#groups[slot] === group;
  }
  /** Makes a slot hold exactly the beginning that the group's members share. */
  begin(slot: number, group: PrefixGroup<unknown>): void {
    const length = group.prefixLength;
    const holder = length === 0 ? -1 : this.#groups.indexOf(group);
    if (this.holds(slot, group)) this.#cache.truncate(slot, length);
    else if (holder >= 0) this.#cache.fork(holder, slot, length);
    else {
      this.#cache.truncate(slot);
      const ids = group.members[0]?.ids.subarray(0, length) ?? new Int32Array();
      if (length > 0) this.forward([{ slot, ids, wanted: [] }], () => undefined);
    }
    this.#groups[slot] = group;
  }

  /** Appends tokens to slots (each at most once) in as many passes as they need. */
  forward(entries: readonly SlotEntry[], visit: LogitsVisitor): void {
    let pass: { entry: SlotEntry; from: number; to: number }[] = [];
    let room = this.#batchTokens;
    const run = (): void => {
      if (pass.length > 0) this.#pass(pass, visit);
      pass = [];
      room = this.#batchTokens;
    };
    for (const entry of entries.toSorted((a, b) => a.slot - b.slot)) {
      for (let from = 0; from < entry.ids.length;) {
        const to = Math.min(entry.ids.length, from + room);
        pass.push({ entry, from, to });
        room -= to - from;
        from = to;
        if (room === 0) run();
      }
    }
    run();
  }
  #pass(pass: readonly { entry: SlotEntry; from: number; to: number }[], visit: LogitsVisitor): void {
    const { engine, config } = this.#model;
    engine.scope(() => {
      const batch = this.#cache.extend(pass.map(({ entry, from, to }) => ({ slot: entry.slot, ids: entry.ids.subarray(from, to) })));
      const { hidden_TH } = this.#model.forwardHidden(batch, { cache: this.#cache });
      const rows: number[] = [];
      const places: { entry: SlotEntry; position: number }[] = [];
      let start = 0;
      for (const { entry, from, to } of pass) {
        for (const position of entry.wanted) {
          if (position < from || position >= to) continue;
          rows.push(start + position - from);
          places.push({ entry, position });
        }
        start += to - from;
      }
      const step = Math.max(1, Math.floor(logitsBytes / 4 / config.vocabSize));
      for (let at = 0; at < rows.length; at += step) {
        engine.scope(() => {
          visit(places.slice(at, at + step), this.#model.logits(hidden_TH, rows.slice(at, at + step)));
        });
      }
    });
  }

  [Symbol.dispose](): void {
    this.#cache[Symbol.dispose]();
  }
}

/** Throws `aborted` work away: between passes, never within one. */
export function checkSignal(signal: AbortSignal | undefined): void {
  if (signal?.aborted === true)
    throw new MoeError("usage", "evaluation: interrupted; what was finished is kept (--resume goes on from there)");
}
