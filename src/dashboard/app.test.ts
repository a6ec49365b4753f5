/** The dashboard's server: what it answers, and that nothing but the run and the page ever leaves it. */
import { execFileSync } from "node:child_process";
import { appendFileSync, cpSync, mkdirSync, mkdtempSync, realpathSync, renameSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { request } from "node:http";
import { hostname, tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import type { LoadAnswer, RunDetail, RunList } from "./api.ts";
import { startDashboard, type Dashboard } from "./index.ts";
import type { PageFile } from "./page-files.ts";

const secret = "the secret of another folder";
let [folder, outside] = ["", ""];
let dashboard: Dashboard;
const file: PageFile = {
  type: "text/html",
  body: Buffer.from("page"),
  gzip: Buffer.from("g"),
  brotli: Buffer.from("b"),
  tag: '"t"',
  immutable: false,
};
const step = (n: number): string =>
  `${JSON.stringify({ type: "step", step: n, loss: 1 / n, layers: [{ layer: 0, dropRate: 0.1, load: [0.5, 0.25, 0.25] }] })}\n`;

beforeEach(async () => {
  folder = realpathSync(mkdtempSync(join(tmpdir(), "moe-app-")));
  outside = realpathSync(mkdtempSync(join(tmpdir(), "moe-outside-")));
  for (const name of ["metrics.jsonl", "samples.jsonl", "config.json", "plan.json", "lock"])
    writeFileSync(join(outside, name), JSON.stringify({ type: "step", step: 1, best: { secret }, loss: 1, prompt: 0, tokens: [secret] }));
  mkdirSync(join(folder, "a"));
  writeFileSync(join(folder, "a", "metrics.jsonl"), [1, 2, 3].map(step).join(""));
  dashboard = await startDashboard({ folder, host: "127.0.0.1", port: 0, page: new Map([["/", file]]) });
});
afterEach(async () => {
  await dashboard.close();
  for (const path of [folder, outside]) rmSync(path, { recursive: true, force: true });
});

/** A request as it is, path and all: fetch would tidy it. */
async function raw(
  path: string,
  headers: Record<string, string> = {},
): Promise<{ status: number; body: string; headers: Record<string, unknown> }> {
  const { port } = new URL(dashboard.url);
  return await new Promise((resolve, reject) => {
    const sent = request({ host: "127.0.0.1", port, path, headers }, (response) => {
      let body = "";
      response.setEncoding("utf8").on("data", (text: string) => {
        body += text;
      });
      response.on("end", () => resolve({ status: response.statusCode ?? 0, body, headers: response.headers }));
    });
    sent.on("error", reject).end();
  });
}
const json = async <T>(path: string): Promise<T> => JSON.parse((await raw(path)).body) as T;
const runs = async (): Promise<RunList["runs"]> => (await json<RunList>("/api/runs")).runs;

describe("the dashboard's server", () => {
  test("lists runs, and tells of one what its records hold", async () => {
    const [run] = await runs();
    expect(run).toMatchObject({ name: "a", kind: "run", state: "stopped", lastStep: 3, lastLoss: 1 / 3 });
    const detail = await json<RunDetail>(`/api/runs/${run?.id}`);
    expect(detail).toMatchObject({
      layers: [{ layer: 0, numExperts: 3 }],
      scalars: ["loss"],
      index: { numSteps: 3, complete: true, badLines: 0 },
    });
    expect(await json<LoadAnswer>(`/api/runs/${run?.id}/load?to=2`)).toMatchObject({ to: 2, layers: [{ load: [0.5, 0.25, 0.25] }] });
  });

  test("says that a run is live while a process holds its lock, done when its last step is there", async () => {
    writeFileSync(join(folder, "a", "lock"), JSON.stringify({ pid: process.pid, host: hostname(), started: null }));
    expect((await runs())[0]?.state).toBe("live");
    writeFileSync(join(folder, "a", "lock"), JSON.stringify({ pid: 4_000_000, host: hostname(), started: null }));
    writeFileSync(join(folder, "a", "config.json"), JSON.stringify({ numSteps: 3 }));
    expect((await runs())[0]).toMatchObject({ state: "done", numSteps: 3 });
  });

  test("follows a run: events tell of new steps, of runs that come and that go", async () => {
    const [run] = await runs();
    await json(`/api/runs/${run?.id}`);
    const events: string[] = [];
    const { port } = new URL(dashboard.url);
    const stream = request({ host: "127.0.0.1", port, path: "/api/events" }, (response) => {
      response.setEncoding("utf8").on("data", (text: string) => events.push(text));
    });
    stream.on("error", () => undefined).end();
    const heard = async (pattern: RegExp): Promise<void> => {
      for (let i = 0; i < 400 && !pattern.test(events.join("")); i++) await new Promise((done) => setTimeout(done, 25));
      expect(events.join("")).toMatch(pattern);
    };
    await heard(/retry/);
    appendFileSync(join(folder, "a", "metrics.jsonl"), step(4));
    await heard(/event: run\ndata: .*"lastStep":4/);
    mkdirSync(join(folder, "b"));
    writeFileSync(join(folder, "b", "metrics.jsonl"), "");
    await heard(/event: runs/);
    // A resumed run drops records and makes them again.
    writeFileSync(join(folder, "a", "new"), step(1) + step(2));
    renameSync(join(folder, "a", "new"), join(folder, "a", "metrics.jsonl"));
    await heard(/"lastStep":2/);
    stream.destroy();
  });

  test("never serves what lies outside the folder: links to files and folders are not there", async () => {
    symlinkSync(outside, join(folder, "linked"));
    mkdirSync(join(folder, "b"));
    for (const name of ["metrics.jsonl", "samples.jsonl", "config.json", "plan.json"])
      symlinkSync(join(outside, name), join(folder, "b", name));
    mkdirSync(join(folder, "c", "checkpoints"), { recursive: true });
    writeFileSync(join(folder, "c", "config.json"), "{}");
    symlinkSync(join(outside, "plan.json"), join(folder, "c", "plan.json"));
    symlinkSync(outside, join(folder, "c", "plans"));
    const all = await runs();
    expect(all.map(({ name }) => name).toSorted()).toEqual(["a", "c"]);
    for (const { id } of all)
      for (const path of ["", "/series?keys=loss", "/sample?step=1&prompt=0"])
        expect((await raw(`/api/runs/${id}${path}`)).body).not.toContain(secret);
  });

  test("does not follow a folder that became a link after it was found", async () => {
    const [run] = await runs();
    rmSync(join(folder, "a"), { recursive: true });
    symlinkSync(outside, join(folder, "a"));
    const detail = await raw(`/api/runs/${run?.id}`);
    expect(detail.body).not.toContain(secret);
    expect(detail.status === 404 || (JSON.parse(detail.body) as RunDetail).index.numSteps === 0).toBe(true);
  });

  test("opens no pipe, which would never end", async () => {
    execFileSync("mkfifo", [join(folder, "a", "samples.jsonl"), join(folder, "a", "plan.json")]);
    const [run] = await runs();
    expect(await json(`/api/runs/${run?.id}`)).toMatchObject({ index: { numSteps: 3 }, artifacts: [] });
  });

  test("answers whatever path and query with an error in JSON, and never with a file", { timeout: 30_000 }, async () => {
    const [run] = await runs();
    const paths = [
      "../../../etc/passwd",
      "..%2f..%2fetc%2fpasswd",
      "%2e%2e/config.json",
      "....//config.json",
      "a/metrics.jsonl",
      "C:\\x",
      "%00",
      "%",
    ];
    const prefixes = [
      "/",
      "/assets/",
      "/api/",
      "/api/runs/",
      `/api/runs/${run?.id}/`,
      `/api/runs/${run?.id}/artifact?id=`,
      `/api/runs/${run?.id}/load?to=`,
    ];
    for (const prefix of prefixes)
      for (const path of paths) {
        const { status, body } = await raw(prefix + path);
        expect([status, body.includes("root:"), body.includes('"type"')], prefix + path).toEqual([
          expect.toSatisfy((s: number) => s >= 400 && s < 500),
          false,
          false,
        ]);
      }
    const value = fc.oneof(fc.constantFrom("-1", "1e999", "NaN", "0", "99999999999999999999", "", "[]", "__proto__"), fc.webSegment());
    const query = fc.record(
      { keys: value, key: value, layer: value, from: value, to: value, points: value, step: value, prompt: value, id: value },
      { requiredKeys: [] },
    );
    const route = fc.constantFrom(
      "",
      "/series",
      "/layer",
      "/grid",
      "/load",
      "/experts",
      "/evaluations",
      "/similarity",
      "/similarity/matrix",
      "/sample",
      "/artifact",
    );
    await fc.assert(
      fc.asyncProperty(route, query, async (path, parameters) => {
        const { status, body } = await raw(`/api/runs/${run?.id}${path}?${new URLSearchParams(parameters).toString()}`);
        expect([200, 400, 404]).toContain(status);
        expect(body).not.toMatch(/[:,[](NaN|-?Infinity)|internal error/);
      }),
      { numRuns: 150 },
    );
  });

  test("refuses names that are not its own, which a page elsewhere could point here", async () => {
    expect((await raw("/api/runs", { host: "evil.example" })).status).toBe(403);
    expect((await raw("/", { host: "evil.example:80" })).status).toBe(403);
    expect((await raw("/api/runs", { host: `localhost:${new URL(dashboard.url).port}` })).status).toBe(200);
  });

  test("sends the page compressed, with a policy that lets it load nothing but itself, and once", async () => {
    expect(await raw("/")).toMatchObject({
      status: 200,
      body: "page",
      headers: { "content-security-policy": expect.stringContaining("default-src 'none'") as string },
    });
    expect(await raw("/", { "accept-encoding": "gzip, br" })).toMatchObject({ body: "b", headers: { "content-encoding": "br" } });
    expect((await raw("/", { "if-none-match": '"t"' })).status).toBe(304);
    expect((await raw("/api/server")).status).toBe(404);
  });
});

describe("starting a dashboard", () => {
  let other = "";
  beforeAll(() => {
    other = mkdtempSync(join(tmpdir(), "moe-start-"));
    cpSync(import.meta.filename, join(other, "file"));
  });
  afterAll(() => {
    rmSync(other, { recursive: true, force: true });
  });
  const start = async (options: object): Promise<Dashboard> =>
    await startDashboard({ folder: other, host: "127.0.0.1", port: 0, page: new Map([["/", file]]), ...options });
  test("names the folder that is none, the port that is taken, the address that is none", async () => {
    await expect(start({ folder: join(other, "nothing") })).rejects.toThrow(
      /nothing: expected the folder of a run, or a folder of runs, got nothing of that name/,
    );
    await expect(start({ folder: join(other, "file") })).rejects.toThrow(/file: expected the folder of a run/);
    const { port } = new URL(dashboard.url);
    await expect(start({ port: Number(port) })).rejects.toThrow(`port ${port} of 127.0.0.1 is taken; --port 0 takes one that is free`);
    for (const server of ["nonsense", "file:///etc/passwd", "http://user@host"])
      await expect(start({ server })).rejects.toThrow(/--server .*: expected an address like/);
  });
  test("tells a server that does not answer, and goes on", async () => {
    const watching = await start({ server: "http://127.0.0.1:1" });
    const { port } = new URL(watching.url);
    const stream = await fetch(`http://127.0.0.1:${port}/api/events`);
    const reader = stream.body?.getReader();
    let text = "";
    for (let i = 0; i < 20 && !text.includes("does not answer"); i++) text += new TextDecoder().decode((await reader?.read())?.value);
    expect(text).toMatch(/event: server\ndata: .*http:\/\/127\.0\.0\.1:1 does not answer/);
    await watching.close();
  });
});
