/**
 * The oracle judged: every backward kernel of the reference against central differences of its forward. Operands are f32, so a difference
 * quotient with step 2^-7 is good to about 1e-4; a wrong term is off by far more.
 */
import { describe, expect, test } from "vitest";
import type { Backend } from "../backend.ts";
import { routerScorings } from "../kernels.ts";
import { createReferenceBackend } from "./index.ts";

const f32 = 0;
const step = 2 ** -7;

/** Smooth, irregular values of the order of 1 (no random numbers needed: any point will do). */
function values(count: number, seed: number): Float32Array {
  return Float32Array.from({ length: count }, (_, i) => Math.sin(i * 12.9898 + seed * 78.233) * 1.2);
}

/** Scoped use of a backend: arrays in, arrays out, everything freed. */
class Scratch {
  readonly backend: Backend = createReferenceBackend();
  put(source: Float32Array | Int32Array): number {
    const ptr = this.backend.alloc(source.byteLength);
    this.backend.write(ptr, source);
    return ptr;
  }
  get(ptr: number, count: number): Float32Array {
    const out = new Float32Array(count);
    this.backend.read(out, ptr);
    return out;
  }
}

interface Gradient {
  /** Values of the differentiable inputs. */
  readonly inputs: readonly Float32Array[];
  /** The output for inputs at these pointers. */
  readonly forward: (scratch: Scratch, inputs: readonly number[]) => Float32Array;
  /** Gradients of sum(output * dOut), one array an input. */
  readonly backward: (scratch: Scratch, inputs: readonly number[], dOut: Float32Array) => Float32Array[];
}

function expectGradient({ inputs, forward, backward }: Gradient, tolerance = 2e-3): void {
  const run = (at: readonly Float32Array[]): Float32Array => {
    const scratch = new Scratch();
    return forward(
      scratch,
      at.map((input) => scratch.put(input)),
    );
  };
  const dOut = values(run(inputs).length, 99);
  const objective = (at: readonly Float32Array[]): number => run(at).reduce((sum, value, i) => sum + value * (dOut[i] ?? 0), 0);
  const scratch = new Scratch();
  const analytic = backward(
    scratch,
    inputs.map((input) => scratch.put(input)),
    dOut,
  );
  for (const [n, input] of inputs.entries()) {
    for (let i = 0; i < input.length; i++) {
      const moved = (by: number): Float32Array[] =>
        inputs.map((other, o) => (o === n ? other.map((value, j) => (j === i ? value + by : value)) : other));
      const numeric = (objective(moved(step)) - objective(moved(-step))) / (2 * step);
      const found = analytic[n]?.[i] ?? Number.NaN;
      expect(Math.abs(found - numeric), `input ${n}, element ${i}: ${found} for ${numeric}`).toBeLessThanOrEqual(
        tolerance * (1 + Math.abs(numeric)),
      );
    }
  }
}

describe("the reference backward of", () => {
  test("linear is the gradient of its forward", () => {
    const [M, N, K] = [3, 4, 5];
    expectGradient({
      inputs: [values(M * K, 1), values(N * K, 2), values(N, 3)],
      forward: (s, [x = 0, w = 0, b = 0]) => {
        const out = s.backend.alloc(M * N * 4);
        s.backend.kernels.linearForward(out, x, w, b, M, N, K, f32, f32, f32);
        return s.get(out, M * N);
      },
      backward: (s, [x = 0, w = 0], dOut) => {
        const [dy, dx, dw, db] = [s.put(dOut), s.backend.alloc(M * K * 4), s.backend.alloc(N * K * 4), s.backend.alloc(N * 4)];
        s.backend.kernels.linearBackwardInput(dx, dy, w, M, N, K, f32, f32, f32, 0);
        s.backend.kernels.linearBackwardWeight(dw, dy, x, M, N, K, f32, f32, 0);
        s.backend.kernels.linearBackwardBias(db, dy, M, N, f32, 0);
        return [s.get(dx, M * K), s.get(dw, N * K), s.get(db, N)];
      },
    });
  });

  test("grouped linear is the gradient of its forward, with an empty group", () => {
    const [E, N, K] = [3, 2, 4];
    const offsets = Int32Array.of(0, 2, 2, 5);
    expectGradient({
      inputs: [values(5 * K, 1), values(E * N * K, 2)],
      forward: (s, [x = 0, w = 0]) => {
        const out = s.backend.alloc(5 * N * 4);
        s.backend.kernels.groupedLinearForward(out, x, w, s.put(offsets), E, N, K, f32, f32, f32);
        return s.get(out, 5 * N);
      },
      backward: (s, [x = 0, w = 0], dOut) => {
        const [dy, dx, dw, groups] = [s.put(dOut), s.backend.alloc(5 * K * 4), s.backend.alloc(E * N * K * 4), s.put(offsets)];
        s.backend.kernels.groupedLinearBackwardInput(dx, dy, w, groups, E, N, K, f32, f32, f32, 0);
        s.backend.kernels.groupedLinearBackwardWeight(dw, dy, x, groups, E, N, K, f32, f32, 0);
        return [s.get(dx, 5 * K), s.get(dw, E * N * K)];
      },
    });
  });

  test("rmsNorm is the gradient of its forward", () => {
    const [M, H] = [3, 7];
    expectGradient({
      inputs: [values(M * H, 1), values(H, 2)],
      forward: (s, [x = 0, w = 0]) => {
        const out = s.backend.alloc(M * H * 4);
        s.backend.kernels.rmsNormForward(out, 0, x, w, M, H, 1e-2, f32);
        return s.get(out, M * H);
      },
      backward: (s, [x = 0, w = 0], dOut) => {
        const [out, rstd, dx, dw] = [
          s.backend.alloc(M * H * 4),
          s.backend.alloc(M * 4),
          s.backend.alloc(M * H * 4),
          s.put(new Float32Array(H)),
        ];
        s.backend.kernels.rmsNormForward(out, rstd, x, w, M, H, 1e-2, f32);
        s.backend.kernels.rmsNormBackward(dx, dw, s.put(dOut), x, w, rstd, M, H, f32, 0);
        return [s.get(dx, M * H), s.get(dw, H)];
      },
    });
  });

  test("rope is the inverse rotation", () => {
    const [M, heads, headDim, half] = [3, 2, 8, 3];
    const size = M * heads * headDim;
    const rotate = (s: Scratch, x: number, inverse: number): Float32Array => {
      const table = s.backend.alloc(5 * half * 2 * 4);
      s.backend.kernels.ropeTable(table, s.put(Float32Array.of(1, 0.3, 0.1)), 5, half, 1);
      s.backend.kernels.ropeApply(x, table, s.put(Int32Array.of(4, 0, 2)), M, heads, headDim, heads * headDim, half, inverse, f32);
      return s.get(x, size);
    };
    expectGradient({
      inputs: [values(size, 1)],
      forward: (s, [x = 0]) => rotate(s, x, 0),
      backward: (s, _, dOut) => [rotate(s, s.put(dOut), 1)],
    });
  });

  test("swiglu is the gradient of its forward", () => {
    const n = 9;
    expectGradient({
      inputs: [values(n, 1), values(n, 2)],
      forward: (s, [gate = 0, up = 0]) => {
        const out = s.backend.alloc(n * 4);
        s.backend.kernels.swigluForward(out, gate, up, n, f32);
        return s.get(out, n);
      },
      backward: (s, [gate = 0, up = 0], dOut) => {
        const [dGate, dUp] = [s.backend.alloc(n * 4), s.backend.alloc(n * 4)];
        s.backend.kernels.swigluBackward(dGate, dUp, s.put(dOut), gate, up, n, f32, 0);
        return [s.get(dGate, n), s.get(dUp, n)];
      },
    });
  });

  test("embedding is the gradient of its forward, with an id that repeats and one outside the table", () => {
    const [M, H, V] = [4, 3, 5];
    const ids = Int32Array.of(2, 0, 2, 9);
    expectGradient({
      inputs: [values(V * H, 1)],
      forward: (s, [table = 0]) => {
        const out = s.backend.alloc(M * H * 4);
        s.backend.kernels.embeddingForward(out, table, s.put(ids), M, H, V, f32);
        return s.get(out, M * H);
      },
      backward: (s, _, dOut) => {
        const dTable = s.put(new Float32Array(V * H));
        s.backend.kernels.embeddingBackward(dTable, s.put(dOut), s.put(ids), M, H, V, f32);
        return [s.get(dTable, V * H)];
      },
    });
  });

  test("attention is the gradient of its forward, with grouped heads, a window and a query that sees nothing", () => {
    const [T, S, Hq, Hkv, D, window, scale] = [4, 5, 4, 2, 3, 3, 0.6];
    const [size, keySize] = [T * Hq * D, S * Hkv * D];
    const [bases, ends] = [Int32Array.of(0, 0, 1, 1), Int32Array.of(0, 2, 4, 5)];
    const tail = [T, S, Hq, Hkv, D, Hq * D, Hkv * D, Hkv * D, window, scale, f32] as const;
    expectGradient({
      inputs: [values(size, 1), values(keySize, 2), values(keySize, 3)],
      forward: (s, [q = 0, k = 0, v = 0]) => {
        const out = s.backend.alloc(size * 4);
        s.backend.kernels.attentionForward(out, 0, q, k, v, s.put(bases), s.put(ends), ...tail);
        return s.get(out, size);
      },
      backward: (s, [q = 0, k = 0, v = 0], dOut) => {
        const [out, lse, dq, dk, dv] = [
          s.backend.alloc(size * 4),
          s.backend.alloc(T * Hq * 4),
          s.backend.alloc(size * 4),
          s.backend.alloc(keySize * 4),
          s.backend.alloc(keySize * 4),
        ];
        const [base, end] = [s.put(bases), s.put(ends)];
        s.backend.kernels.attentionForward(out, lse, q, k, v, base, end, ...tail);
        s.backend.kernels.attentionBackward(dq, dk, dv, s.put(dOut), q, k, v, out, lse, base, end, ...tail, 0);
        return [s.get(dq, size), s.get(dk, keySize), s.get(dv, keySize)];
      },
    });
  });

  test("crossEntropy is the gradient of its loss, scaled, and nothing where the target is negative", () => {
    const [M, V] = [3, 5];
    const targets = Int32Array.of(4, -1, 0);
    const losses = (s: Scratch, logits: number, dLogits: number): Float32Array => {
      const loss = s.backend.alloc(M * 4);
      s.backend.kernels.crossEntropy(loss, dLogits, logits, s.put(targets), M, V, 1);
      return s.get(loss, M);
    };
    expectGradient({
      inputs: [values(M * V, 1)],
      forward: (s, [logits = 0]) => losses(s, logits, 0),
      backward: (s, [logits = 0], dOut) => {
        const dLogits = s.backend.alloc(M * V * 4);
        losses(s, logits, dLogits);
        return [s.get(dLogits, M * V).map((d, i) => d * (dOut[Math.floor(i / V)] ?? 0))];
      },
    });
  });

  const routerModes = Object.entries(routerScorings).flatMap(([name, scoring]) =>
    [
      { normalize: 0, unbiased: 0, renormalize: 1, scale: 1 },
      { normalize: 1, unbiased: 0, renormalize: 0, scale: 2.5 },
      { normalize: 1, unbiased: 1, renormalize: 1, scale: 1.5 },
    ].map((mode) => ({ name, scoring, ...mode })),
  );
  for (const { name, scoring, normalize, unbiased, renormalize, scale } of routerModes) {
    test(`router is the gradient of its weights and probabilities (${name}, normalize ${normalize}, unbiased ${unbiased}, renormalize ${renormalize})`, () => {
      const [T, E, k] = [3, 6, 2];
      const outputs = (s: Scratch, logits: number): { probs: number; weights: number; indices: number } => {
        const [probs, weights, indices] = [s.backend.alloc(T * E * 4), s.backend.alloc(T * k * 4), s.backend.alloc(T * k * 4)];
        s.backend.kernels.routerForward(
          probs,
          weights,
          indices,
          logits,
          0,
          0,
          T,
          E,
          k,
          1,
          1,
          scoring,
          normalize,
          unbiased,
          renormalize,
          0,
          1.7,
          1e-3,
          scale,
        );
        return { probs, weights, indices };
      };
      expectGradient({
        inputs: [values(T * E, 4)],
        forward: (s, [logits = 0]) => {
          const { probs, weights } = outputs(s, logits);
          return Float32Array.of(...s.get(weights, T * k), ...s.get(probs, T * E));
        },
        backward: (s, [logits = 0], dOut) => {
          const { probs, weights, indices } = outputs(s, logits);
          const dLogits = s.backend.alloc(T * E * 4);
          s.backend.kernels.routerBackward(
            dLogits,
            s.put(dOut.slice(0, T * k)),
            s.put(dOut.slice(T * k)),
            probs,
            weights,
            indices,
            logits,
            T,
            E,
            k,
            scoring,
            normalize,
            unbiased,
            renormalize,
            1.7,
            1e-3,
            scale,
          );
          return [s.get(dLogits, T * E)];
        },
      });
    });
  }

  test("combine and permutation are the gradients of dispatching, with dropped choices", () => {
    const [T, k, H, R] = [3, 2, 4, 4];
    const slots = Int32Array.of(0, 2, -1, 3, 1, -1);
    const rowToken = Int32Array.of(0, 2, 0, 1);
    expectGradient({
      inputs: [values(R * H, 1), values(T * k, 2)],
      forward: (s, [y = 0, weights = 0]) => {
        const out = s.backend.alloc(T * H * 4);
        s.backend.kernels.combineForward(out, y, s.put(slots), weights, T, k, H, f32);
        return s.get(out, T * H);
      },
      backward: (s, [y = 0, weights = 0], dOut) => {
        const [dy, dWeights] = [s.backend.alloc(R * H * 4), s.backend.alloc(T * k * 4)];
        s.backend.kernels.combineBackward(dy, dWeights, s.put(dOut), y, s.put(slots), weights, T, k, H, f32);
        return [s.get(dy, R * H), s.get(dWeights, T * k)];
      },
    });
    expectGradient({
      inputs: [values(T * H, 3)],
      forward: (s, [x = 0]) => {
        const out = s.backend.alloc(R * H * 4);
        s.backend.kernels.gatherRows(out, x, s.put(rowToken), R, H * 4);
        return s.get(out, R * H);
      },
      backward: (s, _, dOut) => {
        const dx = s.backend.alloc(T * H * 4);
        s.backend.kernels.permuteBackward(dx, s.put(dOut), s.put(slots), T, k, H, f32, 0);
        return [s.get(dx, T * H)];
      },
    });
  });
});
