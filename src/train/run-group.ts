/**
 * The ranks of a run before they have models: rank 0 owns the run's folder, makes what is made once, and tells; the others wait for it and read.
 * One rank alone is such a group, too.
 */
import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { Communicator } from "../parallel/communicator.ts";
import { gatherValues } from "../parallel/gather-values.ts";
import type { Engine } from "../tensor/index.ts";
import { MoeError } from "../util/errors.ts";

export class RunGroup {
  /** Null: one rank alone. */
  readonly world: Communicator | null;
  readonly #engine: Engine;

  constructor(engine: Engine, world: Communicator | null) {
    this.#engine = engine;
    this.world = world === null || world.size === 1 ? null : world;
  }
  get rank(): number {
    return this.world?.rank ?? 0;
  }
  get size(): number {
    return this.world?.size ?? 1;
  }
  /** Whether this rank writes the folder and reports. */
  get isFirst(): boolean {
    return this.rank === 0;
  }

  /** What each rank gave, in rank order. */
  gather<T>(value: T): T[] {
    return this.world === null ? [value] : gatherValues(this.#engine, this.world, value);
  }
  any(flag: boolean): boolean {
    return this.gather(flag).includes(true);
  }
  /** What rank 0 makes, on every rank. Must be plain data. */
  async first<T>(make: () => T | Promise<T>): Promise<T> {
    if (!this.isFirst) return this.gather<T | null>(null)[0] as T;
    const made = await make();
    this.gather<T | null>(made);
    return made;
  }
  /** Rank 0 runs `make`, then the others do: they find what it left on the disk. */
  async inTurn<T>(make: () => T | Promise<T>): Promise<T> {
    if (!this.isFirst) this.gather(null);
    const made = await make();
    if (this.isFirst) this.gather(null);
    return made;
  }

  /**
   * Throws `configuration`, on every rank, where ranks were started with another configuration or from other sources: they would train
   * different models, or wait for each other for ever.
   */
  requireAlike(configuration: unknown): void {
    if (this.world === null) return;
    const own = { configurations: hashOf([JSON.stringify(configuration)]), "versions of the code": codeHash() };
    const [first = own, ...others] = this.gather(own);
    for (const [index, other] of others.entries()) {
      const different = (Object.keys(own) as (keyof typeof own)[]).filter((name) => other[name] !== first[name]);
      if (different.length === 0) continue;
      throw new MoeError(
        "configuration",
        `ranks 0 and ${index + 1} were started with different ${different.join(" and ")}: start all ranks of a run alike, from one copy of the code`,
      );
    }
  }
}

function hashOf(parts: Iterable<string | Uint8Array>): string {
  const hash = createHash("sha256");
  for (const part of parts) hash.update(part).update("\0");
  return hash.digest("hex");
}

/** Of the sources that this program runs from (`src`, or `dist` of a package). */
export function codeHash(folder = fileURLToPath(new URL("..", import.meta.url))): string {
  const names = readdirSync(folder, { recursive: true, encoding: "utf8" }).filter((name) => /(?<!\.test|\.d)\.(ts|js)$/.test(name));
  return hashOf(names.toSorted().flatMap((name) => [name, readFileSync(join(folder, name))]));
}
