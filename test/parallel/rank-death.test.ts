/** A rank that dies under a server: who waits and who comes is told with 503 which rank it was, and the process ends with 1. */
import { spawn, type ChildProcess } from "node:child_process";
import { existsSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, test } from "vitest";
import { removeFolder, until, writeTinyModel } from "../server/harness.ts";

const main = fileURLToPath(new URL("../../src/cli/main.ts", import.meta.url));
const fault = new URL("./die.mjs", import.meta.url);
let folder = "";
beforeAll(async () => {
  folder = await writeTinyModel();
}, 60_000);
afterAll(() => {
  removeFolder(folder);
});

interface Answer {
  readonly status: number;
  readonly text: string;
}
async function complete(url: string, body: Readonly<Record<string, unknown>>): Promise<Answer> {
  const response = await fetch(`${url}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ prompt: "Once upon a time", temperature: 0, ignore_eos: true, ...body }),
  });
  return { status: response.status, text: await response.text() };
}

test("a rank that is a thread", { timeout: 120_000 }, async () => {
  const flag = join(folder, "die");
  const env = { ...process.env, MOE_TEST_DIE: flag, NODE_OPTIONS: `--import=${fault.href}` };
  const args = [main, "serve", folder, "--port", "0", "--tp", "3", "--tp-weights", "2,1,1", "--max-context", "512"];
  const child: ChildProcess = spawn(process.execPath, args, { env, stdio: ["ignore", "ignore", "pipe"] });
  let errors = "";
  child.stderr?.on("data", (data: Buffer) => (errors += data.toString()));
  const exited = new Promise<number | null>((done) => {
    child.once("exit", done);
  });
  try {
    const url = (): string => /http:\/\/[\d.]+:\d+/.exec(errors)?.[0] ?? "";
    await until(() => url() !== "" || child.exitCode !== null, 90);
    expect(await complete(url(), { max_tokens: 3 })).toMatchObject({ status: 200 });
    const whole = complete(url(), { max_tokens: 500, n: 8 });
    const streamed = complete(url(), { max_tokens: 500, stream: true });
    const running = async (): Promise<string> => (await fetch(`${url()}/metrics`)).text();
    await until(async () => /^moe_requests_running [1-9]/m.test(await running()));
    writeFileSync(flag, "");
    const { status, text } = await whole;
    expect(status).toBe(503);
    expect(text).toMatch(/"message":"the engine is gone: rank 1 ended without a result \(exit code 5\)"/);
    // Its head was sent before: the error is its last event.
    expect((await streamed).text).toMatch(/data: \{"error":\{"message":"the engine is gone: rank 1 /);
    const late = await complete(url(), { max_tokens: 3 }).catch(() => null);
    if (late !== null) expect(late).toMatchObject({ status: 503, text: expect.stringContaining("rank 1") as string });
    expect(await exited).toBe(1);
    expect(errors).toMatch(/the engine is gone: rank 1 ended without a result/);
  } finally {
    child.kill("SIGKILL");
    if (existsSync(flag)) rmSync(flag);
  }
});
