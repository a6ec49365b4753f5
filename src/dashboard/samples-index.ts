/** Where each text of a `samples.jsonl` is: texts are read again when they are asked for. */
import type { SampleText } from "./api.ts";
import type { Line } from "./line-tail.ts";
import { asArray, asCount, asObject, asText, parseJson } from "./record.ts";

const maxTexts = 100_000;
const maxPrompts = 64;

export class SamplesIndex {
  /** By step, then by prompt. */
  readonly #lines = new Map<number, Map<number, Pick<Line, "offset" | "length">>>();
  #numTexts = 0;
  #numPrompts = 0;
  badLines = 0;

  get steps(): number[] {
    return [...this.#lines.keys()].toSorted((a, b) => a - b);
  }
  get numPrompts(): number {
    return this.#numPrompts;
  }
  add({ text, offset, length }: Line): void {
    if (text.trim() === "") return;
    const record = asObject(parseJson(text));
    const [step, prompt] = [asCount(record?.["step"]), asCount(record?.["prompt"])];
    if (step === null || prompt === null || prompt >= maxPrompts || this.#numTexts >= maxTexts) {
      this.badLines++;
      return;
    }
    const prompts = this.#lines.get(step) ?? new Map<number, Pick<Line, "offset" | "length">>();
    prompts.set(prompt, { offset, length });
    this.#lines.set(step, prompts);
    this.#numTexts++;
    this.#numPrompts = Math.max(this.#numPrompts, prompt + 1);
  }
  find(step: number, prompt: number): Pick<Line, "offset" | "length"> | null {
    return this.#lines.get(step)?.get(prompt) ?? null;
  }
}

const maxTokens = 8192;
const maxLayers = 512;

/** A text from its line, or null where the line is no such record. */
export function sampleText(line: string): SampleText | null {
  const record = asObject(parseJson(line));
  const [step, prompt] = [asCount(record?.["step"]), asCount(record?.["prompt"])];
  if (record === null || step === null || prompt === null) return null;
  const tokens = asArray(record["tokens"])
    .slice(0, maxTokens)
    .map((token) => asText(token) ?? "");
  const layers = asArray(record["layers"])
    .slice(0, maxLayers)
    .map((layer) => asCount(layer) ?? 0);
  const rows = (value: unknown, item: (value: unknown) => number): number[][][] =>
    layers.map((_, l) =>
      tokens.map((__, t) =>
        asArray(asArray(asArray(value)[l])[t])
          .slice(0, 64)
          .map(item),
      ),
    );
  return {
    step,
    prompt,
    promptTokens: Math.min(tokens.length, asCount(record["promptTokens"]) ?? 0),
    tokens,
    layers,
    experts: rows(record["experts"], (value) => asCount(value) ?? -1),
    weights: rows(record["weights"], (value) => (typeof value === "number" && Number.isFinite(value) ? value : 0)),
  };
}
