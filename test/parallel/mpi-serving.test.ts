/** A model cut over processes that mpirun started: the texts of one process, over HTTP too; drained by a signal; told which rank died. */
import { spawn, spawnSync, type ChildProcess } from "node:child_process";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { removeFolder, until, writeTinyModel } from "../server/harness.ts";
import { mpirunCommand, mpirunEnv, noMpi, ourLines } from "./mpirun.ts";

const main = fileURLToPath(new URL("../../src/cli/main.ts", import.meta.url));
const usual = ["--oversubscribe", "--bind-to", "none", "-n", "3", process.execPath, main];
let folder = "";
beforeAll(async () => {
  folder = await writeTinyModel();
}, 60_000);
afterAll(() => {
  removeFolder(folder);
});

interface Generated {
  readonly text: string;
  readonly ranks?: readonly { readonly plannedBytes: number; readonly weightBytes: number }[];
}
const generateArgs = ["--prompt", "Once upon a time", "--max-tokens", "24", "--json"];

interface Serving {
  readonly child: ChildProcess;
  readonly url: string;
  readonly errors: () => string;
  readonly exited: Promise<number | null>;
}
async function serve(...options: readonly string[]): Promise<Serving> {
  const { NODE_OPTIONS: _, ...inherited } = process.env;
  const env = { ...inherited, ...mpirunEnv, MOE_THREADS: "1" };
  const child = spawn("mpirun", [...options, ...usual, "serve", folder, "--port", "0", "--max-context", "512"], {
    env,
    stdio: ["ignore", "pipe", "pipe"],
  });
  let text = "";
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (data: Buffer) => (text += data.toString()));
  const exited = new Promise<number | null>((done) => {
    child.once("exit", done);
  });
  const url = (): string => /serving at (http:\/\/[\d.]+:\d+)/.exec(text)?.[1] ?? "";
  await until(() => (url() !== "" && text.includes("rank 2 holds")) || child.exitCode !== null, 120);
  if (url() === "") throw new Error(`no server: ${text}`);
  return { child, url: url(), errors: () => text, exited };
}
async function complete(url: string, body: Readonly<Record<string, unknown>>): Promise<{ status: number; text: string }> {
  const response = await fetch(`${url}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ prompt: "Once upon a time", temperature: 0, ignore_eos: true, ...body }),
  });
  return { status: response.status, text: await response.text() };
}
async function isBusy(url: string): Promise<boolean> {
  return /^moe_requests_running [1-9]/m.test(await (await fetch(`${url}/metrics`)).text());
}

describe.skipIf(noMpi !== null)(`mpirun -n 3 moe${noMpi === null ? "" : ` (skipped: ${noMpi})`}`, () => {
  test("generate says once what one process says, after the plan, and holds what was planned", { timeout: 240_000 }, async () => {
    const alone = spawnSync(process.execPath, [main, "generate", folder, ...generateArgs], { encoding: "utf8" });
    const { text } = JSON.parse(alone.stdout) as Generated;
    const { code, stdout, stderr } = await mpirunCommand([
      ...usual,
      "generate",
      folder,
      ...generateArgs,
      "--tp",
      "3",
      "--tp-weights",
      "2,1,1",
      "--comm",
      "mpi",
    ]);
    expect(code, stderr).toBe(0);
    const result = JSON.parse(stdout) as Generated;
    expect(result.text).toBe(text);
    expect(result.ranks).toHaveLength(3);
    for (const { plannedBytes, weightBytes } of result.ranks ?? []) expect(weightBytes).toBe(plannedBytes);
    expect(stderr.match(/^tensor parallelism over 3 ranks/gm)).toHaveLength(1);
  });

  test("generate with another count than was started is refused in one line", { timeout: 120_000 }, async () => {
    const { code, stderr } = await mpirunCommand([...usual, "generate", folder, ...generateArgs, "--tp", "2"]);
    expect(code).toBe(2);
    expect(ourLines(stderr)).toEqual(["moe: --tp 2: mpirun started 3 ranks; leave out --tp, or start as many"]);
  });

  test("serve answers as one process does, and SIGUSR2, which mpirun passes on, drains it", { timeout: 240_000 }, async () => {
    const alone = spawnSync(process.execPath, [main, "generate", folder, ...generateArgs], { encoding: "utf8" });
    const { text } = JSON.parse(alone.stdout) as Generated;
    const { child, url, errors, exited } = await serve();
    try {
      const replies = await Promise.all([1, 2, 3].map(() => complete(url, { max_tokens: 24, ignore_eos: false })));
      for (const { status, text: body } of replies) {
        expect(status).toBe(200);
        expect((JSON.parse(body) as { choices: { text: string }[] }).choices[0]?.text).toBe(text);
      }
      expect(errors().match(/rank \d holds \S+ GB of weights and cache, planned \S+ GB/g)).toHaveLength(3);
      const last = complete(url, { max_tokens: 400 });
      await until(() => isBusy(url));
      child.kill("SIGUSR2");
      expect(await last).toMatchObject({ status: 200, text: expect.stringContaining('"finish_reason":"length"') as string });
      expect(await exited, errors()).toBe(0);
    } finally {
      child.kill("SIGKILL");
    }
  });

  test.each([
    ["is told by mpirun's signal", []],
    ["is noticed where mpirun lets the others live", ["--enable-recovery"]],
  ] as const)("a killed rank %s: 503, which it was, and the end", { timeout: 240_000 }, async (_, options) => {
    const { child, url, errors, exited } = await serve(...options);
    try {
      const whole = complete(url, { max_tokens: 500, n: 8 });
      const streamed = complete(url, { max_tokens: 500, stream: true });
      await until(() => isBusy(url));
      const pids = spawnSync("pgrep", ["-P", String(child.pid)], { encoding: "utf8" })
        .stdout.trim()
        .split("\n")
        .map(Number);
      expect(pids).toHaveLength(3);
      const ranks = spawnSync(
        "sh",
        ["-c", `for p in ${pids.join(" ")}; do tr '\\0' '\\n' < /proc/$p/environ | grep ^OMPI_COMM_WORLD_RANK= ; done`],
        {
          encoding: "utf8",
        },
      ).stdout;
      const one = pids[ranks.trim().split("\n").indexOf("OMPI_COMM_WORLD_RANK=1")];
      if (one === undefined) throw new Error(`no rank 1 among ${ranks}`);
      process.kill(one, "SIGKILL");
      expect(await whole).toMatchObject({
        status: 503,
        text: expect.stringMatching(/the engine is gone: rank 1 is (gone|lost)/) as string,
      });
      expect((await streamed).text).toMatch(/data: \{"error":\{"message":"the engine is gone: rank 1 is/);
      const code = await exited;
      // With recovery, mpirun calls all well that ends.
      if (options.length === 0) expect(code, errors()).not.toBe(0);
      expect(errors()).toMatch(/^moe: the engine is gone: rank 1 is/m);
    } finally {
      child.kill("SIGKILL");
    }
  });
});
