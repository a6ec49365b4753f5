/** The optimizer's state through upcycling: carried to every copy, and taken by the optimizer of the upcycled model. */
import { cpSync, existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { loadBackend } from "../../src/backend/load.ts";
import { createSafetensors } from "../../src/checkpoint/safetensors-writer.ts";
import { openSafetensors } from "../../src/checkpoint/safetensors.ts";
import { parseRunConfig, type RunConfigInput } from "../../src/config/run.ts";
import { loadModel, type ModelDType } from "../../src/model/index.ts";
import { AdamW } from "../../src/optim/index.ts";
import { Engine, type Tensor } from "../../src/tensor/index.ts";
import { readCheckpointState, train, type TrainEvent } from "../../src/train/index.ts";
import { upcycle, type UpcycleOptions } from "../../src/upcycle/index.ts";
import { MoeError } from "../../src/util/errors.ts";
import { writeFileAtomically } from "../../src/util/files.ts";
import { Random } from "../../src/util/random.ts";
import { tinyRun, trainedBytes } from "../train/harness.ts";
import { smallConfig, writeDense } from "./fixtures.ts";

const adamw = { beta1: 0.9, beta2: 0.95, eps: 1e-8, weightDecay: 0.1 };
let folder = "";
let engine: Engine;

/** A checkpoint of training as `src/train` writes it: a model, its optimizer's tensors with random moments, and where it was. */
function writeCheckpoint(path: string, dtype: ModelDType): void {
  writeDense(engine, smallConfig, dtype, path);
  using model = loadModel(engine, path, { dtype, mapped: false });
  using optimizer = new AdamW(engine, model.parameters.values(), adamw);
  const { tensors } = optimizer.state();
  const random = new Random(4);
  using writer = createSafetensors(
    join(path, "optimizer.safetensors"),
    Array.from(tensors, ([name, { shape }]) => ({ name, dtype: "F32" as const, shape })),
  );
  for (const [name, tensor] of tensors) {
    const values = name.endsWith(".master")
      ? tensor.toFloat32Array()
      : random.fillNormal(new Float32Array(tensor.size), 0.01).map(Math.abs);
    writer.write(name, new Uint8Array(values.buffer, 0, values.byteLength));
  }
  writer.commit();
  writeFileAtomically(join(path, "state.json"), JSON.stringify({ step: 7, tokens: 7000 }));
}
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "moe-carry-"));
  engine = new Engine(await loadBackend({ numThreads: 1 }));
  for (const dtype of ["f32", "bf16"] as const) writeCheckpoint(join(folder, dtype), dtype);
});
afterEach(() => {
  expect(engine.backend.liveBytes).toBe(0);
});
afterAll(() => {
  engine[Symbol.dispose]();
  rmSync(folder, { recursive: true, force: true });
});

let runs = 0;
function upcycled(from: string, options: Partial<UpcycleOptions>): string {
  const out = join(folder, `moe-${runs++}`);
  upcycle(join(folder, from), out, { numExperts: 4, topK: 2, optimizer: "carry", ...options });
  return out;
}
function state(path: string): (name: string) => Float32Array {
  return (name) => {
    using file = openSafetensors(join(path, "optimizer.safetensors"));
    const values = new Float32Array((file.tensors.get(name)?.shape ?? []).reduce((a, b) => a * b, 1));
    file.readFloat32(name, values);
    return values;
  };
}

describe("carried moments", () => {
  test("are the dense model's in every copy and what else was copied, and zero for routers", () => {
    const [before, after] = [state(join(folder, "f32")), state(upcycled("f32", {}))];
    for (const kind of ["exp_avg", "exp_avg_sq"]) {
      expect(after(`layers.1.attention.query.weight.${kind}`)).toEqual(before(`layers.1.attention.query.weight.${kind}`));
      const dense = before(`layers.1.feedForward.down.weight.${kind}`);
      const experts = after(`layers.1.moe.experts.down.${kind}`);
      expect(experts.length).toBe(4 * dense.length);
      for (const e of [0, 1, 2, 3]) expect(experts.subarray(e * dense.length, (e + 1) * dense.length)).toEqual(dense);
      expect(after(`layers.1.moe.router.weight.${kind}`).every((x) => x === 0)).toBe(true);
    }
  });
  test("follow shards, and are gone where drop-upcycling drew anew", () => {
    const before = state(join(folder, "f32"))("layers.0.feedForward.gate.weight.exp_avg");
    const half = before.length / 2;
    const sharded = state(upcycled("f32", { granularity: 2 }))("layers.0.moe.experts.gate.exp_avg");
    for (const e of [0, 1, 2, 3]) {
      expect(sharded.subarray(e * half, (e + 1) * half)).toEqual(before.subarray((e % 2) * half, ((e % 2) + 1) * half));
    }
    const dropped = state(upcycled("f32", { method: { type: "drop", ratio: 0.25 } }))("layers.0.moe.experts.gate.exp_avg");
    expect(dropped.filter((x) => x === 0).length).toBe(dropped.length / 4);
  });
  test.each(["f32", "bf16"] as const)("are taken by the optimizer of the upcycled model, which goes on (%s)", (dtype) => {
    const out = upcycled(dtype, {});
    expect(JSON.parse(readFileSync(join(out, "optimizer.json"), "utf8"))).toEqual({ step: 7 });
    using model = loadModel(engine, out, { dtype, mapped: false });
    using optimizer = new AdamW(engine, model.parameters.values(), adamw);
    const weights = [...model.parameters.values()].map((tensor) => tensor.toFloat32Array());
    const read = state(out);
    const loaded = new Map<string, Tensor>();
    for (const [name, { shape }] of optimizer.state().tensors) {
      const tensor = engine.detached(shape, "f32");
      engine.backend.write(tensor.ptr, read(name));
      loaded.set(name, tensor);
    }
    optimizer.loadState({ step: 7, tensors: loaded });
    for (const tensor of loaded.values()) tensor.dispose();
    // Masters are those of the weights: loading them changes nothing.
    expect([...model.parameters.values()].map((tensor) => tensor.toFloat32Array())).toEqual(weights);
    expect(optimizer.numSteps).toBe(7);
  });
});

test.each(["f32", "bf16"] as const)(
  "a run goes on with them: its own checkpoints count the updates before, and resuming is bit for bit (%s)",
  async (precision) => {
    const runOf = (name: string): string => join(folder, `${name}-${precision}`);
    const go = async (name: string, input: RunConfigInput, resume = false): Promise<{ checkpoint: string; warnings: string[] }> => {
      const warnings: string[] = [];
      const onEvent = (event: TrainEvent): void => void (event.type === "warning" && warnings.push(event.message));
      const config = parseRunConfig({ ...input, precision });
      const { folder: checkpoint } = await train({ engine, config, runFolder: runOf(name), resume, onEvent });
      return { checkpoint, warnings };
    };
    const dense = await go("dense", tinyRun(join(folder, "text"), "dense", { numSteps: 3 }));
    const moe = runOf("upcycled");
    upcycle(dense.checkpoint, moe, { numExperts: 4, topK: 2, optimizer: "carry" }, (out) => {
      cpSync(join(dense.checkpoint, "tokenizer.json"), join(out, "tokenizer.json"));
    });
    const { newTokenizer: _, ...input } = tinyRun(join(folder, "text"), "dense", {
      model: { from: moe },
      numSteps: 4,
      checkpoint: { intervalSteps: 2 },
    });
    const whole = await go("whole", input);
    expect(whole.warnings.join()).toMatch(/begins with the state of 3 updates/);
    expect(readCheckpointState(whole.checkpoint).optimizerStep).toBe(7);
    const expected = trainedBytes(whole.checkpoint);
    rmSync(whole.checkpoint, { recursive: true });
    const resumed = await go("whole", input, true);
    expect(resumed.warnings.join()).not.toMatch(/carried/);
    expect(trainedBytes(resumed.checkpoint)).toEqual(expected);
    // The moments matter: without them the same run ends elsewhere.
    for (const name of ["optimizer.json", "optimizer.safetensors"]) rmSync(join(moe, name));
    expect(trainedBytes((await go("without", input)).checkpoint).weights).not.toEqual(expected.weights);
  },
);

test("nothing is written when the state starts anew, and carrying what is not there is refused", () => {
  expect(existsSync(join(upcycled("f32", { optimizer: "reset" }), "optimizer.safetensors"))).toBe(false);
  const plain = join(folder, "plain");
  writeDense(engine, smallConfig, "f32", plain);
  const carry = (): unknown => upcycle(plain, join(folder, "never"), { numExperts: 4, topK: 2, optimizer: "carry" });
  expect(carry).toThrow(MoeError);
  expect(carry).toThrow(/optimizer carry: expected a training checkpoint/);
  expect(existsSync(join(folder, "never"))).toBe(false);
});
