/** Parts of parameters: which bytes a rank reads, and what they and their scales are. */
import { afterAll, expect, test } from "vitest";
import { createReferenceBackend } from "../backend/reference/index.ts";
import type { Fp8Scaling } from "../backend/kernels.ts";
import { tensorParallelPlan, type ExpertMode } from "../parallel/index.ts";
import { Engine } from "../tensor/index.ts";
import { goldenFolder } from "../../test/golden/models/golden.ts";
import { loadParameters } from "./load.ts";
import { parameterSpecs, type ParameterSpec } from "./parameters.ts";
import { scalesCanBeCut, shardSpecs, slicedScales, wholeSpec } from "./shard.ts";
import { openModelSource, type ModelSource } from "./source.ts";

const engine = new Engine(createReferenceBackend());
afterAll(() => {
  expect(engine.backend.liveBytes).toBe(0);
  engine[Symbol.dispose]();
});

/** Elements start..start+count-1 in every dimension but those of its slices, where it is a part. */
function part(values: Float32Array, spec: ParameterSpec): number[] {
  const { slices = [], shape } = spec;
  const whole = wholeSpec(spec).shape;
  return [...values].filter((_, i) =>
    slices.every(({ dim, start, size }) => {
      const inner = whole.slice(dim + 1).reduce((a, b) => a * b, 1);
      const at = Math.floor(i / inner) % size;
      return at >= start && at < start + (shape[dim] ?? 0);
    }),
  );
}

/** A source that notes the bytes read of each file tensor. Routers are looked at beforehand, by `readFloat32`: that is not counted. */
function counting(source: ModelSource, read: Map<string, Uint8Array>): ModelSource {
  return {
    ...source,
    [Symbol.dispose]: () => undefined,
    raw: (name) => {
      const raw = source.raw(name);
      if (raw === null) return null;
      return {
        ...raw,
        read: (into, fromByte) => {
          const size = (source.tensors.get(name)?.shape ?? []).reduce((a, b) => a * b, 4);
          const seen = read.get(name) ?? new Uint8Array(size);
          read.set(name, seen);
          for (let i = 0; i < into.length; i++) seen[fromByte + i] = (seen[fromByte + i] ?? 0) + 1;
          raw.read(into, fromByte);
        },
      };
    },
  };
}

test.each([
  ["skywork-moe", "experts"],
  ["skywork-moe", "slices"],
  ["qwen2-moe", "experts"],
  ["qwen2", "experts"],
  ["olmoe", "slices"],
] as const)(
  "%s, %s: a rank reads its own bytes, each once, all ranks read everything, and parts are the whole's",
  (name, mode: ExpertMode) => {
    using source = openModelSource(goldenFolder(name));
    const specs = parameterSpecs(source.config, "f32");
    const whole = loadParameters(engine, source, specs, { mapped: false });
    const values = new Map([...whole].map(([key, tensor]) => [key, tensor.toFloat32Array()]));
    const everything = new Map<string, Uint8Array>();
    const { ranks } = tensorParallelPlan(source.config, { ranks: 3, weights: [3, 1, 2], mode, format: { weights: "f32" } });
    for (const { share, weightBytes } of ranks) {
      const read = new Map<string, Uint8Array>();
      const own = shardSpecs(specs, source.config, share);
      const parameters = loadParameters(engine, counting(source, read), own, { mapped: false });
      let bytes = 0;
      for (const [tensor, seen] of read) {
        expect(Math.max(...seen)).toBeLessThanOrEqual(1);
        bytes += seen.reduce((a, b) => a + b, 0);
        const all = everything.get(tensor) ?? new Uint8Array(seen.length);
        everything.set(
          tensor,
          all.map((count, i) => count + (seen[i] ?? 0)),
        );
      }
      expect(bytes).toBe(weightBytes);
      for (const spec of own) {
        expect([...(parameters.get(spec.name)?.toFloat32Array() ?? [])], spec.name).toEqual(
          part(values.get(spec.name) ?? new Float32Array(0), spec),
        );
        expect(wholeSpec(spec).shape).toEqual(specs.find((candidate) => candidate.name === spec.name)?.shape);
      }
      for (const tensor of parameters.values()) tensor.dispose();
    }
    for (const [tensor, seen] of everything) expect(Math.min(...seen), tensor).toBeGreaterThanOrEqual(1);
    for (const tensor of whole.values()) tensor.dispose();
  },
);

test("scales of a part are those of its weights, in every layout and dimension", () => {
  const [E, N, K] = [3, 384, 256];
  for (const scaling of ["tensor", "channel", "block128"] as const satisfies readonly Fp8Scaling[]) {
    const grid = { tensor: [1, 1], channel: [N, 1], block128: [N / 128, K / 128] }[scaling];
    const [rows = 1, columns = 1] = grid;
    const scales = Float32Array.from({ length: E * rows * columns }, (_, i) => i);
    /** The scale of weight (e, n, k) of matrices [N, K]. */
    const scaleOf = (all: Float32Array, sizes: readonly number[], e: number, n: number, k: number): number => {
      const [height, width] =
        scaling === "block128"
          ? [Math.ceil((sizes[0] ?? 0) / 128), Math.ceil((sizes[1] ?? 0) / 128)]
          : [scaling === "channel" ? (sizes[0] ?? 0) : 1, 1];
      const [row, column] = scaling === "block128" ? [Math.floor(n / 128), Math.floor(k / 128)] : [scaling === "channel" ? n : 0, 0];
      return all[(e * height + row) * width + column] ?? Number.NaN;
    };
    for (const [dim, start, size] of [
      [0, 1, 2],
      [1, 128, 256],
      [2, 128, 128],
    ] as const) {
      const shape = [E, N, K].with(dim, size);
      const spec: ParameterSpec = {
        name: "layers.0.moe.experts.gate",
        shape,
        dtype: "bf16",
        init: "normal",
        decays: true,
        trains: true,
        slices: [{ dim, start, size: [E, N, K][dim] ?? 0 }],
      };
      expect(scalesCanBeCut(spec, scaling)).toBe(true);
      const cut = slicedScales(spec, scaling, scales);
      const [e0, n0, k0] = [0, 0, 0].with(dim, start) as [number, number, number];
      for (const [e, n, k] of [[0, 0, 0], [shape[0] ?? 0, shape[1] ?? 0, shape[2] ?? 0].map((s) => s - 1)] as [number, number, number][]) {
        expect(scaleOf(cut, shape.slice(1), e, n, k)).toBe(scaleOf(scales, [N, K], e + e0, n + n0, k + k0));
      }
    }
  }
  const through: ParameterSpec = {
    name: "layers.0.attention.query.weight",
    shape: [64, 256],
    dtype: "bf16",
    init: "normal",
    decays: true,
    trains: true,
    slices: [{ dim: 0, start: 64, size: 256 }],
  };
  expect(scalesCanBeCut(through, "block128")).toBe(false);
  expect(scalesCanBeCut(through, "channel")).toBe(true);
});
