import { expect, test } from "vitest";
import { keyCheck } from "./auth.ts";
import { ApiError } from "./errors.ts";
import { ExpertRecorder, imbalance } from "./expert-recorder.ts";
import { Admission } from "./limits.ts";

function thrown(run: () => unknown): ApiError {
  try {
    run();
  } catch (error) {
    if (error instanceof ApiError) return error;
    throw error;
  }
  throw new Error("nothing was thrown");
}

test("places are given out up to the batch and the queue, and given back once", () => {
  const admission = new Admission({ maxBatch: 2, maxQueue: 3 });
  const first = admission.admit(4);
  const second = admission.admit(1);
  const error = thrown(() => admission.admit(1));
  expect([error.data.status, error.data.code]).toEqual([429, "queue_full"]);
  expect(error.retryAfter).toBeGreaterThanOrEqual(1);
  first();
  first();
  expect(admission.underWay).toBe(1);
  second();
  expect(admission.underWay).toBe(0);
  // No wait would help here.
  expect(thrown(() => admission.admit(6)).data.status).toBe(400);
});

test("a key is compared whole, whichever way it comes", () => {
  const check = keyCheck("a:secret");
  const basic = (pair: string): string => `Basic ${Buffer.from(pair).toString("base64")}`;
  for (const right of ["Bearer a:secret", "bearer  a:secret", basic("user:a:secret"), basic(":a:secret")])
    expect(() => check(right)).not.toThrow();
  for (const wrong of ["Bearer a:secre", "Bearer a:secrett", "Bearer", "a:secret", "Digest a:secret", basic("a:secret"), ""])
    expect(thrown(() => check(wrong)).data.status).toBe(401);
  expect(() => keyCheck(null)(undefined)).not.toThrow();
});

test("a record of experts is what came between start and stop", () => {
  const counts = new Map([[1, [5, 5]]]);
  const recorder = new ExpertRecorder(() => counts);
  expect(recorder.act("dump")).toEqual({ recording: false, layers: [] });
  recorder.act("start");
  counts.set(1, [6, 8]).set(0, [2, 0]);
  const layers = [
    { layer: 0, tokens: [2, 0], imbalance: 2 },
    { layer: 1, tokens: [1, 3], imbalance: 1.5 },
  ];
  expect(recorder.act("dump")).toEqual({ recording: true, layers });
  recorder.act("stop");
  counts.set(1, [100, 100]);
  expect(recorder.act("dump")).toEqual({ recording: false, layers });
  expect(recorder.act("start").layers).toMatchObject([{ tokens: [0, 0] }, { tokens: [0, 0] }]);
  expect(imbalance([3, 3, 3])).toBe(1);
  expect(imbalance([0, 0])).toBe(1);
});
