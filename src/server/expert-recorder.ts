/** How many tokens each expert got between `start` and `stop`. The engine's counters run on; a record is a difference of two readings. */
import type { ExpertRecord } from "./protocol.ts";

type Counts = ReadonlyMap<number, ArrayLike<number>>;

export class ExpertRecorder {
  readonly #read: () => Counts;
  #from: Counts | null = null;
  #until: Counts | null = null;

  constructor(read: () => Counts) {
    this.#read = read;
  }
  /** `start` begins a new record, `stop` ends it, `dump` tells it; all three return it. */
  act(action: "start" | "stop" | "dump"): ExpertRecord {
    if (action === "start") [this.#from, this.#until] = [this.#copy(), null];
    else if (action === "stop" && this.#from !== null) this.#until ??= this.#copy();
    return this.#record();
  }
  #copy(): Counts {
    return new Map([...this.#read()].map(([layer, counts]) => [layer, Array.from(counts)]));
  }
  #record(): ExpertRecord {
    if (this.#from === null) return { recording: false, layers: [] };
    const from = this.#from;
    const layers = [...(this.#until ?? this.#read())]
      .toSorted(([a], [b]) => a - b)
      .map(([layer, counts]) => {
        const tokens = Array.from(counts, (count, expert) => count - (from.get(layer)?.[expert] ?? 0));
        return { layer, tokens, imbalance: imbalance(tokens) };
      });
    return { recording: this.#until === null, layers };
  }
}

/** The largest load over the mean load: 1 is balance, the number of experts the worst. 1 without tokens. */
export function imbalance(tokens: readonly number[]): number {
  const total = tokens.reduce((a, b) => a + b, 0);
  return total === 0 ? 1 : (Math.max(...tokens) * tokens.length) / total;
}
