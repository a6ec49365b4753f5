import { expect, test } from "vitest";
import { parseRunConfig } from "../config/run.ts";
import { TimeLeft } from "./time-left.ts";

const config = parseRunConfig({
  model: { from: "model" },
  data: { train: [{ path: "a" }], sequenceLength: 8 },
  batchSequences: 4,
  numSteps: 10,
  optimizer: { learningRate: 1 },
  evaluation: { intervalSteps: 3, maxSequences: 6 },
  checkpoint: { intervalSteps: 5 },
});

test("what is left counts steps, evaluations and checkpoints that are still due", () => {
  const left = new TimeLeft(config, [100, 6]);
  left.step(2);
  // 9 steps of 2 s, and evaluations after steps 3, 6, 9 and 10, each guessed at 12 sequences of a third of 2 s / 4.
  expect(left.after(1)).toBeCloseTo(9 * 2 + 4 * 12 * (2 / 4 / 3), 12);
  left.evaluation(30);
  left.save(7);
  left.step(4);
  // Step 3 itself is still to be evaluated; checkpoints after 5 and at the end.
  expect(left.after(3)).toBeCloseTo(7 * 3 + 4 * 30 + 2 * 7, 12);
  expect(left.after(4)).toBeCloseTo(6 * 3 + 3 * 30 + 2 * 7, 12);
  expect(left.after(10)).toBeCloseTo(30 + 7, 12);
});

test("without validation there is nothing to evaluate, and old steps are forgotten", () => {
  const left = new TimeLeft(config, []);
  left.step(1000);
  for (let i = 0; i < 20; i++) left.step(1);
  expect(left.after(8)).toBeCloseTo(2, 12);
});
