import { describe, expect, test } from "vitest";
import { createReferenceBackend } from "../backend/reference/index.ts";
import { loadBackend } from "../backend/load.ts";
import { Experts } from "../nn/index.ts";
import { Engine, type Tensor } from "../tensor/index.ts";
import { Random } from "../util/random.ts";
import { outputSimilarity, sortedGates, weightSimilarity } from "./similarity.ts";

const [E, F, H, T] = [3, 5, 4, 6];
const backends = {
  reference: async () => Promise.resolve(createReferenceBackend()),
  default: async () => await loadBackend({ numThreads: 1 }),
};

/** By the definition, in f64. */
function cosine(a: readonly number[], b: readonly number[]): number {
  const dot = (x: readonly number[], y: readonly number[]): number => x.reduce((sum, value, i) => sum + value * (y[i] ?? 0), 0);
  return dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
}
function flatExpert({ gate_EFH, up_EFH, down_EHF }: Experts, e: number): number[] {
  return [gate_EFH, up_EFH, down_EHF].flatMap((w) => [...w.rows(e, e + 1).toFloat32Array()]);
}
/** One expert's outputs for x, by the formula of SwiGLU. */
function outputs({ gate_EFH, up_EFH, down_EHF }: Experts, e: number, x: Tensor): number[] {
  const rows = (w: Tensor, width: number): number[][] => {
    const values = [...w.toFloat32Array()];
    return Array.from({ length: values.length / width }, (_, i) => values.slice(i * width, (i + 1) * width));
  };
  const times = (matrix: number[][], v: readonly number[]): number[] =>
    matrix.map((row) => row.reduce((sum, w, i) => sum + w * (v[i] ?? 0), 0));
  const [gate, up, down] = [rows(gate_EFH.rows(e, e + 1), H), rows(up_EFH.rows(e, e + 1), H), rows(down_EHF.rows(e, e + 1), F)];
  return rows(x, H).flatMap((token) => {
    const u = times(up, token);
    return times(
      down,
      times(gate, token).map((g, i) => (g / (1 + Math.exp(-g))) * (u[i] ?? 0)),
    );
  });
}

describe.each(Object.entries(backends))("the similarity of experts on the %s backend", (_, start) => {
  const onEngine = async (fn: (engine: Engine, make: (...shape: number[]) => Tensor) => void): Promise<void> => {
    using engine = new Engine(await start());
    const random = new Random(4);
    engine.scope(() => {
      fn(engine, (...shape) => engine.from(random.fillNormal(new Float32Array(shape.reduce((a, b) => a * b, 1)), 0.7), shape, "f32"));
    });
    expect(engine.backend.liveBytes).toBe(0);
  };

  test("is the cosine of each pair, of weights and of outputs", async () => {
    await onEngine((_engine, make) => {
      const experts = new Experts(make(E, F, H), make(E, F, H), make(E, H, F));
      const x = make(T, H);
      for (const [{ mean, matrix }, vector] of [
        [weightSimilarity(experts), (e: number) => flatExpert(experts, e)],
        [outputSimilarity(experts, x), (e: number) => outputs(experts, e, x)],
      ] as const) {
        for (let i = 0; i < E; i++) {
          expect(matrix[i]?.[i]).toBeCloseTo(1, 6);
          for (let j = 0; j < E; j++) {
            expect(Math.abs((matrix[i]?.[j] ?? 9) - cosine(vector(i), vector(j)))).toBeLessThan(2e-6);
            expect(matrix[j]?.[i]).toBe(matrix[i]?.[j]);
          }
        }
        expect(mean).toBeCloseTo(((matrix[0]?.[1] ?? 9) + (matrix[0]?.[2] ?? 9) + (matrix[1]?.[2] ?? 9)) / 3, 12);
        // Random experts are not alike: a formula that took every pair for the same vector would show.
        expect(Math.abs(mean)).toBeLessThan(0.7);
      }
    });
  });
  test("of outputs is the same for tokens taken in parts, which need less memory", async () => {
    await onEngine((engine, make) => {
      const experts = new Experts(make(E, F, H), make(E, F, H), make(E, H, F));
      const x = make(50, H);
      const measure = (maxElements: number): { matrix: number[]; peak: number } => {
        const before = engine.backend.liveBytes;
        engine.backend.resetPeak();
        const { matrix } = outputSimilarity(experts, x, maxElements);
        return { matrix: matrix.flat(), peak: engine.backend.peakBytes - before };
      };
      const whole = measure(1 << 24);
      for (const tokens of [1, 7, 49]) {
        const parts = measure(tokens * E * F);
        for (const [i, value] of parts.matrix.entries()) expect(Math.abs(value - (whole.matrix[i] ?? 9))).toBeLessThan(2e-6);
        if (tokens < 10) expect(parts.peak).toBeLessThan(0.5 * whole.peak);
      }
    });
  });
  test("counts every element of long vectors, where one sum in f32 would stop growing", async () => {
    await onEngine((engine) => {
      // After 4096^2 = 2^24, adding 1 changes no f32.
      const n = 1 << 18;
      const [first, second] = [new Float32Array(n).fill(1), new Float32Array(n).fill(-1)];
      first[0] = second[0] = 4096;
      const long = engine.from(Float32Array.from([...first, ...second]), [2, 512, n / 512], "f32");
      const none = engine.zeros([2, 1, 1], "f32");
      const { mean } = weightSimilarity(new Experts(long, none, none));
      expect(Math.abs(mean - (2 ** 24 - n + 1) / (2 ** 24 + n - 1))).toBeLessThan(2e-3);
    });
  });
  test("is 1 for copies, -1 for opposites in one matrix's outputs, and 0, not NaN, for an expert of zeros", async () => {
    await onEngine((engine, make) => {
      const [gate, up, down] = [make(F, H), make(F, H), make(H, F)].map((w) => [...w.toFloat32Array()]);
      const stack = (factors: readonly number[], w: readonly number[] = [], a: number, b: number): Tensor =>
        engine.from(
          factors.flatMap((factor) => w.map((value) => factor * value)),
          [E, a, b],
          "f32",
        );
      const experts = new Experts(stack([1, 1, 0], gate, F, H), stack([1, 1, 0], up, F, H), stack([1, -1, 0], down, H, F));
      const { matrix } = outputSimilarity(experts, make(T, H));
      expect(matrix[0]?.[1]).toBeCloseTo(-1, 6);
      expect(matrix.map((row) => row[2])).toEqual([0, 0, 0]);
      const copies = new Experts(stack([1, 1, 1], gate, F, H), stack([1, 1, 1], up, F, H), stack([1, 1, 1], down, H, F));
      expect(weightSimilarity(copies).mean).toBeCloseTo(1, 6);
      expect(weightSimilarity(experts).matrix[2]).toEqual([0, 0, 0]);
    });
  });
});

test("sorted gates are means by rank within a token, not by expert", () => {
  const probs = Float32Array.from([0.5, 0.25, 0.25, 0.125, 0.125, 0.75]);
  expect(sortedGates(probs, 3)).toEqual([0.625, 0.1875, 0.1875]);
  expect(sortedGates(new Float32Array(0), 3)).toEqual([0, 0, 0]);
});
