/**
 * The suite and the tables judged: every kernel has cases, arities agree, and a wrong kernel is found out.
 * A suite that passes proves something only if it fails for each kind of mistake that it claims to find.
 */
import { describe, expect, test } from "vitest";
import type { Backend } from "../../src/backend/backend.ts";
import { kernelSignatures } from "../../src/backend/kernels.ts";
import { createReferenceBackend, referenceKernels } from "../../src/backend/reference/index.ts";
import { allCases, kernelNames } from "./cases/index.ts";
import { linearForwardCase } from "./cases/linear.ts";
import { difference, expectation } from "./harness/compare.ts";
import type { Case } from "./harness/operands.ts";
import { runCase } from "./harness/run.ts";

describe("the tables", () => {
  const cases = allCases();
  for (const name of kernelNames) {
    test(`${name} has as many arguments in the reference, and in its cases, as in its signature`, () => {
      const signature = kernelSignatures[name];
      expect(referenceKernels[name]).toHaveLength(signature.length + 1);
      const ofKernel = cases.get(name) ?? [];
      expect(ofKernel.length).toBeGreaterThanOrEqual(6);
      for (const { args } of ofKernel) expect(args).toHaveLength(signature.length);
    });
  }

  test("the reference has no kernel beyond the contract", () => {
    expect(Object.keys(referenceKernels).sort()).toEqual([...kernelNames].sort());
  });

  test("no two cases of a kernel have the same title", () => {
    for (const [name, ofKernel] of cases) {
      const titles = ofKernel.map(({ title }) => title);
      expect(new Set(titles).size, name).toBe(titles.length);
    }
  });
});

/** The reference with another name (so that operands get guards) and a linearForward that does `mistake` after or instead of its work. */
function mistaken(mistake: (reference: Backend, ...args: Parameters<Backend["kernels"]["linearForward"]>) => void): Backend {
  const reference = createReferenceBackend();
  const linearForward: Backend["kernels"]["linearForward"] = (...args) => mistake(reference, ...args);
  return Object.create(reference, {
    name: { value: "native" },
    kernels: { value: { ...reference.kernels, linearForward } },
  }) as Backend;
}

function poke(backend: Backend, ptr: number, bytes: readonly number[]): void {
  backend.write(ptr, Uint8Array.from(bytes));
}

function judge(backend: Backend, one: Case): string | null {
  return difference(one, runCase(backend, one), expectation(createReferenceBackend(), one));
}

/** A new matrix without the last column of `from`. */
function withoutLastColumn(backend: Backend, from: number, rows: number, columns: number): number {
  const to = backend.alloc(rows * (columns - 1) * 4);
  backend.kernels.copyRows(to, from, rows, (columns - 1) * 4, (columns - 1) * 4, columns * 4);
  return to;
}

describe("the suite finds", () => {
  const shape = { M: 7, N: 5, K: 9 };
  const f32 = linearForwardCase(shape, ["f32", "f32", "f32"], true);
  const bf16 = linearForwardCase(shape, ["bf16", "bf16", "bf16"], true);

  test("nothing wrong with a right kernel", () => {
    const right = mistaken((reference, ...args) => reference.kernels.linearForward(...args));
    expect(judge(right, f32)).toBeNull();
    expect(judge(right, bf16)).toBeNull();
  });

  test("a write before and behind an output", () => {
    for (const offset of [-1, shape.M * shape.N * 4]) {
      const writing = mistaken((reference, ...args) => {
        reference.kernels.linearForward(...args);
        poke(reference, args[0] + offset, [0]);
      });
      expect(() => judge(writing, f32)).toThrow(/wrote outside its operands, at byte (-1|140) of 140/);
    }
  });

  test("a write into an input", () => {
    const writing = mistaken((reference, ...args) => {
      reference.kernels.linearForward(...args);
      poke(reference, args[1] + 8, [1, 2, 3, 4]);
    });
    expect(() => judge(writing, f32)).toThrow(/wrote into an input/);
  });

  test("an output left unwritten", () => {
    const lazy = mistaken((reference, out, x, w, bias, M, ...rest) => reference.kernels.linearForward(out, x, w, bias, M - 1, ...rest));
    expect(judge(lazy, f32)).toMatch(/element 30 of 35: .* got NaN/);
  });

  test("a read behind an input that reaches the result", () => {
    const reading = mistaken((reference, out, x, w, bias, M, N, K, ...types) =>
      reference.kernels.linearForward(out, x + 4, w, bias, M, N, K, ...types),
    );
    expect(judge(reading, f32)).not.toBeNull();
  });

  test("a sum that lost its last product", () => {
    const short = mistaken((reference, out, x, w, bias, M, N, K, ...types) => {
      const [xShort, wShort] = [withoutLastColumn(reference, x, M, K), withoutLastColumn(reference, w, N, K)];
      reference.kernels.linearForward(out, xShort, wShort, bias, M, N, K - 1, ...types);
      reference.free(xShort);
      reference.free(wShort);
    });
    expect(judge(short, f32)).toMatch(/expected .* within/);
  });

  test("f32 values rounded to bf16 on the way", () => {
    const coarse = mistaken((reference, out, x, w, bias, M, N, K, xDtype, wDtype) => {
      const rounded = reference.alloc(M * N * 2);
      reference.kernels.linearForward(rounded, x, w, bias, M, N, K, xDtype, wDtype, 1);
      reference.kernels.cast(out, rounded, M * N, 0, 1);
      reference.free(rounded);
    });
    expect(judge(coarse, f32)).toMatch(/expected .* within/);
  });

  test("bf16 results truncated instead of rounded", () => {
    const truncating = mistaken((reference, out, x, w, bias, M, N, K, xDtype, wDtype) => {
      const exact = reference.alloc(M * N * 4);
      reference.kernels.linearForward(exact, x, w, bias, M, N, K, xDtype, wDtype, 0);
      const words = new Uint32Array(M * N);
      reference.read(words, exact);
      reference.write(
        out,
        Uint16Array.from(words, (word) => word >>> 16),
      );
      reference.free(exact);
    });
    expect(judge(truncating, bf16)).toMatch(/expected .* within/);
  });

  test("a missing bias", () => {
    const unbiased = mistaken((reference, out, x, w, _, ...rest) => reference.kernels.linearForward(out, x, w, 0, ...rest));
    expect(judge(unbiased, f32)).not.toBeNull();
    expect(judge(unbiased, bf16)).not.toBeNull();
  });
});
