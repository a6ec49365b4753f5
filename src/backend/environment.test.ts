import { availableParallelism } from "node:os";
import { describe, expect, test } from "vitest";
import { resolveRequest } from "./environment.ts";

describe("the environment of an engine", () => {
  test("leaves engine and instruction set open and takes every processor when nothing is asked for", () => {
    expect(resolveRequest({}, {})).toEqual({
      engine: undefined,
      isa: undefined,
      numThreads: Math.min(256, availableParallelism()),
      nativeLibrary: undefined,
    });
  });
  test("counts an empty variable as absent", () => {
    expect(resolveRequest({}, { MOE_ENGINE: "", MOE_ISA: "", MOE_THREADS: "", MOE_NATIVE_LIBRARY: "" })).toEqual(resolveRequest({}, {}));
  });
  test("lets an option win over its variable", () => {
    const env = { MOE_ENGINE: "wasm", MOE_THREADS: "7" };
    expect(resolveRequest({}, env)).toMatchObject({ engine: "wasm", numThreads: 7 });
    expect(resolveRequest({ engine: "reference", numThreads: 2 }, env)).toMatchObject({ engine: "reference", numThreads: 2 });
  });
  test.each([
    [{ MOE_ENGINE: "natve" }, 'MOE_ENGINE: expected native, wasm, reference, got "natve" (did you mean "native"?)'],
    [{ MOE_ISA: "avx" }, "MOE_ISA: expected avx2, avx512, avx512bf16, amx, neon, got"],
    [{ MOE_THREADS: "0" }, 'MOE_THREADS: expected a number of threads from 1 to 256, got "0"'],
    [{ MOE_THREADS: "257" }, "MOE_THREADS"],
    [{ MOE_THREADS: "two" }, "MOE_THREADS"],
    [{ MOE_THREADS: "1.5" }, "MOE_THREADS"],
    [{ MOE_ENGINE: "wasm", MOE_ISA: "avx2" }, "expected engine native with avx2, got engine wasm"],
  ])("refuses %o as wrong usage and names what is valid", (env, message) => {
    expect(() => resolveRequest({}, env)).toThrow(
      expect.objectContaining({ kind: "usage", message: expect.stringContaining(message) as string }),
    );
  });
});
