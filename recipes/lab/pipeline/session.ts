/** Ranks that take turns between variants of a layout: they sleep while nobody asks for a step, so that something else can be timed meanwhile. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { startRanks, type Ranks } from "../../../src/parallel/index.ts";
import { writeTokens } from "./model.ts";
import type { LabCommand, LabJob, LabStep, Variant } from "./rank.ts";

export class LabSession {
  readonly #ranks: Ranks;
  readonly #size: number;
  readonly #folder: string;
  readonly #answers: (LabStep | "ready")[][];
  #wake: (() => void) | null = null;
  #error: unknown = null;

  private constructor(size: number, numThreads: number, variants: readonly Variant[]) {
    this.#size = size;
    this.#folder = mkdtempSync(join(tmpdir(), "moe-pipeline-lab-"));
    const tokens = join(this.#folder, "tokens");
    writeTokens(tokens);
    this.#answers = Array.from({ length: size }, () => []);
    const data: LabJob = { variants, tokens };
    this.#ranks = startRanks({
      size,
      entry: new URL("./rank.ts", import.meta.url),
      data,
      backend: { numThreads },
      onMessage: (rank, message) => {
        this.#answers[rank]?.push(message as LabStep | "ready");
        this.#wake?.();
      },
    });
    this.#ranks.results.catch((error: unknown) => {
      this.#error = error;
      this.#wake?.();
    });
  }

  /** Ranks with a trainer for each variant, `numThreads` threads each. */
  static async start(size: number, numThreads: number, variants: readonly Variant[]): Promise<LabSession> {
    const session = new LabSession(size, numThreads, variants);
    await session.#all();
    return session;
  }

  /** One step of a variant, as each rank saw it. */
  async step(variant: number, { trace = false } = {}): Promise<LabStep[]> {
    this.#post({ type: "step", variant, trace });
    return (await this.#all()).filter((answer) => answer !== "ready");
  }
  async end(): Promise<void> {
    this.#post({ type: "end" });
    await this.#ranks.results;
    rmSync(this.#folder, { recursive: true, force: true });
  }

  #post(command: LabCommand): void {
    for (let rank = 0; rank < this.#size; rank++) this.#ranks.post(rank, command);
  }
  /** The next answer of every rank. */
  async #all(): Promise<(LabStep | "ready")[]> {
    while (this.#answers.some((list) => list.length === 0)) {
      if (this.#error !== null) throw this.#error;
      await new Promise<void>((resolve) => (this.#wake = resolve));
    }
    return this.#answers.flatMap((list) => list.shift() ?? []);
  }
}
