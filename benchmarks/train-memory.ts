/**
 * A fresh process that runs a few of our training steps and says by how much its peak resident size grew, from just before the model
 * existed. One request, one answer; started by `train.ts`.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { loadBackend } from "../src/backend/load.ts";
import { Engine } from "../src/tensor/index.ts";
import type { Precision } from "./context.ts";
import { OurTraining } from "./train.ts";

/** Bytes of a field of /proc/self/status. */
function statusBytes(field: "VmRSS" | "VmHWM"): number {
  const match = new RegExp(`^${field}:\\s+(\\d+) kB`, "m").exec(readFileSync("/proc/self/status", "utf8"));
  return Number(match?.[1]) * 1024;
}

for await (const line of createInterface({ input: process.stdin })) {
  const { precision, steps, threads } = JSON.parse(line) as { precision: Precision; steps: number; threads: number };
  const engine = new Engine(await loadBackend({ numThreads: threads }));
  writeFileSync("/proc/self/clear_refs", "5"); // the peak starts again from what is resident now
  const before = statusBytes("VmRSS");
  const training = new OurTraining(engine, precision);
  for (let i = 0; i < steps; i++) training.step();
  const bytes = statusBytes("VmHWM") - before;
  console.log(JSON.stringify({ bytes, backendBytes: engine.backend.peakBytes }));
  training[Symbol.dispose]();
  engine[Symbol.dispose]();
}
