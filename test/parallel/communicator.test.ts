/** Ranks as worker threads: what collectives give, that any number of ranks makes progress, and what happens when one is lost. */
import { expect, test } from "vitest";
import { createReferenceBackend } from "../../src/backend/reference/index.ts";
import { createLocalGroup, openLocalWorld, startRanks } from "../../src/parallel/index.ts";
import { inputOf, type Operation } from "./operations.ts";

const entry = new URL("./operations-rank.ts", import.meta.url);
const backend = { engine: "reference", numThreads: 1 } as const;

async function run(size: number, operations: readonly Operation[], timeoutMs = 60_000): Promise<Uint8Array[][]> {
  return (await startRanks({ size, entry, data: operations, backend, timeoutMs }).results) as Uint8Array[][];
}

/** Threads start slowly on a machine that others use. */
const patience = 300_000;

/** Sums in rank order, each step rounded to f32, and to bf16 at the end. */
function expectedSum(operation: Operation & { type: "sum" }, size: number, index: number): Uint8Array {
  const parts = Array.from({ length: size }, (_, r) => {
    const bytes = inputOf(operation, r, index);
    if (operation.dtype === "f32") return new Float32Array(bytes.buffer);
    return new Float32Array(Uint32Array.from(new Uint16Array(bytes.buffer), (half) => half << 16).buffer);
  });
  const sum = Float32Array.from({ length: operation.count }, (_, i) =>
    parts.slice(1).reduce((total, part) => Math.fround(total + (part[i] ?? 0)), parts[0]?.[i] ?? 0),
  );
  if (operation.dtype === "f32") return new Uint8Array(sum.buffer);
  return new Uint8Array(Uint16Array.from(new Uint32Array(sum.buffer), (bits) => (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16).buffer);
}

function operationsFor(size: number): Operation[] {
  const lengths = (most: number): number[] => Array.from({ length: size }, (_, r) => (r % 3 === 1 ? 0 : (r * 977 + most) % (most + 1)));
  return [
    { type: "sum", dtype: "f32", count: 1 },
    { type: "sum", dtype: "f32", count: 0 },
    { type: "sum", dtype: "bf16", count: 577 },
    // More than a slot holds, twice.
    { type: "sum", dtype: "f32", count: 150_001 },
    { type: "sum", dtype: "bf16", count: 70_003 },
    { type: "gather", lengths: lengths(64) },
    { type: "gather", lengths: lengths(700_000) },
    { type: "broadcast", length: 600_011, root: size - 1 },
    { type: "share", length: 0, root: 0 },
    { type: "share", length: 5, root: size - 1 },
    { type: "share", length: 900_001, root: 0 },
    { type: "barriers", count: 500 },
    { type: "sum", dtype: "f32", count: 12 },
  ];
}

test.each([1, 2, 3, 12])(
  "%i ranks: sums in rank order, gathers, broadcasts, the same bits on every rank",
  async (size) => {
    const operations = operationsFor(size);
    const results = await run(size, operations);
    for (const [index, operation] of operations.entries()) {
      const inputs = Array.from({ length: size }, (_, r) => inputOf(operation, r, index));
      const expected =
        operation.type === "sum"
          ? expectedSum(operation, size, index)
          : operation.type === "gather"
            ? Uint8Array.from(Buffer.concat(inputs))
            : operation.type === "barriers" || operation.type === "absent"
              ? new Uint8Array(0)
              : (inputs[operation.root] ?? new Uint8Array(0));
      for (const rank of results) expect(Buffer.compare(rank[index] ?? new Uint8Array(1), expected), JSON.stringify(operation)).toBe(0);
    }
  },
  patience,
);

test.each([
  ["throws", /this rank gives up/],
  ["exits", /rank 1 ended without a result \(exit code 3\)/],
] as const)(
  "a rank that %s ends the others at once, and the cause comes out",
  async (how, message) => {
    // Far longer than the test may take: nobody waits for it.
    await expect(run(4, [{ type: "absent", rank: 1, how }], 10 * patience)).rejects.toThrow(message);
  },
  patience,
);

test(
  "who waits too long says for whom",
  async () => {
    await expect(run(3, [{ type: "absent", rank: 2, how: "sleeps" }], 500)).rejects.toThrow(/waited 0.5 s in barrier for rank 2/);
  },
  patience,
);

test(
  "ranks that are at different places do not take each other's bytes",
  async () => {
    const lost = run(3, [{ type: "absent", rank: 1, how: "elsewhere" }]);
    await expect(lost).rejects.toThrow(/ranks are at different places: rank \d in barrier of 0 .*, rank 1 in broadcast of 8/);
  },
  patience,
);

test("a group that was ended lets nobody wait", () => {
  const reference = createReferenceBackend();
  const [memory] = createLocalGroup(2);
  if (memory === undefined) throw new Error("a group of two has a first rank");
  const communicator = openLocalWorld(reference, memory, { spins: 0, timeoutMs: 60_000 });
  communicator.abort("no more");
  communicator.abort("a second reason");
  expect(() => communicator.barrier()).toThrow("no more");
  reference.dispose();
});

test("a size that is no count is refused", () => {
  expect(() => startRanks({ size: 0, entry, data: null })).toThrow(/at least 1, got 0/);
});
