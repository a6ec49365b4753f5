/** Training curves against PyTorch (`make.py`), and bit by bit against our own committed ones (`make-curves.ts`). */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import type { Engine } from "../../../src/tensor/index.ts";
import { curve, fromHex, kinds, torchCurve, type Curve, type Kind } from "./curves.ts";
import { startTargets, targets, type Target } from "./targets.ts";

const { engines, missing } = await startTargets();
afterAll(() => {
  for (const engine of engines.values()) engine[Symbol.dispose]();
});
function engineOf(target: Target): Engine {
  const engine = engines.get(target);
  if (engine === undefined) throw new Error(missing.get(target));
  return engine;
}
function read<T>(name: string): T {
  return JSON.parse(readFileSync(join(import.meta.dirname, name), "utf8")) as T;
}

describe.each(targets)("on %s", (target) => {
  test.skipIf(missing.has(target))("20 steps have the losses and gradient norms of torch and transformers", () => {
    const expected = read<Curve>("torch.json");
    const got = torchCurve(engineOf(target));
    expect(got.losses).toHaveLength(expected.losses.length);
    for (const [step, loss] of expected.losses.entries()) {
      expect(Math.abs((got.losses[step] ?? 0) / loss - 1), `loss of step ${step + 1}`).toBeLessThan(1e-4);
      expect(Math.abs((got.gradNorms[step] ?? 0) / (expected.gradNorms[step] ?? 0) - 1), `gradient norm of step ${step + 1}`).toBeLessThan(1e-3);
    }
    // The curve says something: the model learned, and the norm was clipped in some steps.
    expect(expected.losses.at(-1)).toBeLessThan(0.9 * (expected.losses[0] ?? 0));
    expect(expected.gradNorms.filter((norm) => norm > 1).length).toBeGreaterThan(0);
  });
  // NEON's chains are as wide as AVX2's in name only: no curve of that machine has been recorded.
  test.skipIf(missing.has(target) || target === "neon").each(kinds)("the losses of a %s model are bit for bit the committed ones", (kind) => {
    const expected = read<Record<"native" | "wasm", Record<Kind, string[]>>>("curves.json")[target === "wasm" ? "wasm" : "native"][kind];
    const got = curve(engineOf(target), kind);
    expect(got.map(fromHex)).toEqual(expected.map(fromHex));
    expect(engineOf(target).backend.liveBytes).toBe(0);
  });
});
