/** Traces, results and served models: other people's files and texts as what the page shows. */
import { describe, expect, test } from "vitest";
import { kindOf } from "./artifacts.ts";
import { evaluationAnswer } from "./evaluation.ts";
import { histogramQuantile, parseSamples, readingOf } from "./prometheus.ts";
import { boundedJson } from "./record.ts";
import { sampleText } from "./samples-index.ts";
import { traceAnswer } from "./trace.ts";

describe("a Chrome trace", () => {
  const x = (tid: number, name: string, ts: number, dur: number, cat = "compute"): object => ({
    ph: "X",
    pid: 1,
    tid,
    name,
    ts,
    dur,
    cat,
    args: { bytes: 5 },
  });
  test("becomes lanes with names, spans from time 0, and the bubble of what computes", () => {
    const answer = traceAnswer("t.json", {
      traceEvents: [
        { ph: "M", name: "process_name", pid: 1, args: { name: "stage 0" } },
        { ph: "M", name: "thread_name", pid: 1, tid: 0, args: { name: "compute" } },
        x(0, "forward", 1000, 40),
        x(0, "backward", 1060, 40),
        x(1, "forward", 1020, 40),
        { ph: "B", pid: 1, tid: 2, name: "send", ts: 1000, cat: "communication" },
        { ph: "E", pid: 1, tid: 2, ts: 1010 },
        { ph: "C", pid: 1, name: "memory", ts: 1000, args: { bytes: 7 } },
        { ph: "C", pid: 1, name: "memory", ts: 1050, args: { bytes: 9 } },
      ],
    });
    expect(answer.duration).toBe(100);
    expect(answer.lanes).toEqual([
      { process: "stage 0", thread: "compute", busy: 0.8 },
      { process: "stage 0", thread: "1", busy: 0.4 },
      { process: "stage 0", thread: "2", busy: 0.1 },
    ]);
    // Lane 0 computes 80 of 100, lane 1 40: idle (20 + 60) / 200. The lane that only sends does not count.
    expect(answer.bubble).toBeCloseTo(0.4, 12);
    expect(answer.events.map(({ lane, name, start, duration }) => [lane, name, start, duration])).toEqual([
      [0, "forward", 0, 40],
      [2, "send", 0, 10],
      [1, "forward", 20, 40],
      [0, "backward", 60, 40],
    ]);
    expect(answer.counters).toEqual([{ process: "stage 0", name: "memory bytes", times: [0, 50], values: [7, 9] }]);
  });
  test("counts time in which spans overlap once", () => {
    expect(traceAnswer("t", { traceEvents: [x(0, "a", 0, 60), x(0, "b", 20, 20), x(0, "c", 50, 50)] }).lanes[0]?.busy).toBe(1);
  });
  test("of nonsense is empty or cut, never an error", () => {
    const nonsense = [
      null,
      5,
      { ph: "X" },
      { ph: "X", ts: "a" },
      { ph: "E", pid: 1, tid: 1, ts: 5 },
      { ph: "X", pid: {}, tid: [], ts: 0, dur: -5, name: 7 },
      { ph: "C", ts: 1 },
    ];
    const { events, bubble } = traceAnswer("t", { traceEvents: nonsense });
    expect(events.every(({ start, duration }) => Number.isFinite(start + duration))).toBe(true);
    expect(Number.isFinite(bubble)).toBe(true);
    const many = traceAnswer("t", { traceEvents: Array.from({ length: 30_000 }, (_, i) => x(i, "a", i, 1)) });
    expect([many.truncated, many.lanes.length <= 512]).toEqual([false, true]);
    expect(traceAnswer("t", { traceEvents: Array.from({ length: 30_000 }, (_, i) => x(0, "a", i, 1)) }).truncated).toBe(true);
  });
});

describe("an evaluation's results", () => {
  const results = {
    results: {
      mmlu_a: { alias: "a", "acc,none": 0.5, "acc_stderr,none": 0.02 },
      mmlu: { alias: "mmlu", "acc,none": 0.6 },
      gsm8k: { "exact_match,strict-match": 0.1, "exact_match,flexible-extract": 0.2 },
    },
    versions: { mmlu: 1 },
    group_subtasks: { mmlu: ["mmlu_a"] },
    "n-shot": { mmlu_a: 5 },
    higher_is_better: { gsm8k: { exact_match: true } },
    model_name: "m",
    date: 1_700_000_000,
  };
  test("become rows, groups before what they contain, a row a metric and filter", () => {
    const { rows, model, date } = evaluationAnswer("r.json", results);
    expect(rows.map(({ task, depth, filter, value, standardError }) => [task, depth, filter, value, standardError])).toEqual([
      ["mmlu", 0, "none", 0.6, null],
      ["a", 1, "none", 0.5, 0.02],
      ["gsm8k", 0, "strict-match", 0.1, null],
      ["gsm8k", 0, "flexible-extract", 0.2, null],
    ]);
    expect([model, date, rows[1]?.shots, rows[2]?.higherIsBetter]).toEqual(["m", 1_700_000_000, 5, true]);
    expect(kindOf(results, "results_x.json")).toBe("evaluation");
  });
  test("whose groups contain each other end", () => {
    const circle = { results: { a: { "x,none": 1 }, b: { "x,none": 2 } }, versions: {}, group_subtasks: { a: ["b"], b: ["a"] } };
    expect(evaluationAnswer("r", circle).rows.map(({ task }) => task)).toEqual(["a", "b"]);
  });
});

describe("readings of a served model", () => {
  const text = (ttft: readonly number[], tokens: readonly number[], generated: number): string =>
    [
      "# HELP moe_requests_running Answers",
      "moe_requests_running 3",
      "moe_requests_waiting 2",
      `moe_generated_tokens_total ${generated}`,
      ...[0.1, 0.5, 1].map((le, i) => `moe_time_to_first_token_seconds_bucket{le="${le}"} ${ttft[i] ?? 0}`),
      `moe_time_to_first_token_seconds_bucket{le="+Inf"} ${ttft[3] ?? 0}`,
      ...tokens.map((count, expert) => `moe_expert_tokens_total{layer="0",expert="${expert}"} ${count}`),
      "broken line",
      "moe_x NaN",
    ].join("\n");
  test("are differences of counters, with rates and quantiles of what came between", () => {
    const [before, now] = [parseSamples(text([0, 0, 0, 0], [10, 0], 100)), parseSamples(text([10, 10, 20, 20], [30, 5], 300))];
    const reading = readingOf(before, now, { time: 7, seconds: 2 });
    expect(reading).toMatchObject({ time: 7, running: 3, waiting: 2, generatedPerSecond: 100, promptPerSecond: 0 });
    expect(reading.experts).toEqual([{ layer: 0, tokens: [20, 5], total: [30, 5] }]);
    // Half of 20 are below 0.1; 19 of 20 lie in the bucket from 0.5 to 1, at nine tenths of it.
    expect(reading.timeToFirstToken.p50).toBeCloseTo(0.1, 9);
    expect(reading.timeToFirstToken.p95).toBeCloseTo(0.95, 9);
    expect(reading.interTokenLatency).toEqual({ p50: null, p95: null });
  });
  test("beyond the last bound tell that bound, and nothing where nothing was counted", () => {
    const now = parseSamples(text([0, 0, 0, 4], [], 0));
    expect(histogramQuantile(null, now, "moe_time_to_first_token_seconds", 0.5)).toBe(1);
    expect(histogramQuantile(now, now, "moe_time_to_first_token_seconds", 0.5)).toBeNull();
  });
  test("of a server that began again have no rates below zero", () => {
    const reading = readingOf(parseSamples(text([5, 5, 5, 5], [50], 900)), parseSamples(text([1, 1, 1, 1], [3], 5)), {
      time: 1,
      seconds: 1,
    });
    expect([reading.generatedPerSecond, reading.experts[0]?.tokens]).toEqual([0, [0]]);
  });
});

describe("JSON of others", () => {
  test("is cut in depth, number and length, and keeps no prototype", () => {
    let deep: unknown = 1;
    for (let i = 0; i < 100_000; i++) deep = [deep];
    expect(JSON.stringify(boundedJson(deep)).length).toBeLessThan(100);
    expect(JSON.stringify(boundedJson(Array.from({ length: 1e6 }, () => 1))).length).toBeLessThan(200_000);
    expect(boundedJson("x".repeat(1e6))).toHaveLength(4003);
    const copy = boundedJson(JSON.parse('{"__proto__":{"a":1},"b":1e999}')) as Record<string, unknown>;
    expect([Object.getPrototypeOf(copy) === Object.prototype, Object.hasOwn(copy, "__proto__"), copy["b"]]).toEqual([true, true, null]);
  });
  test("as a sample has the promised shape or is none", () => {
    expect(sampleText("{}")).toBeNull();
    expect(sampleText('{"step":1,"prompt":0,"tokens":["a",5],"layers":[0],"experts":[[[1,"x"]]],"promptTokens":99}')).toEqual({
      step: 1,
      prompt: 0,
      promptTokens: 2,
      tokens: ["a", ""],
      layers: [0],
      experts: [[[1, -1], []]],
      weights: [[[], []]],
    });
  });
});
