/** Where data is found: in folders of the usual layouts, and on a server that speaks as the Hub does. */
import { createHash } from "node:crypto";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join, relative } from "node:path";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { belongsToStem, findSplit, loadDocs, splitStems } from "./source.ts";
import { isGroup, type Task } from "./task.ts";
import { allTasks } from "./tasks/registry.ts";

let folder = "";
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "moe-source-"));
});
afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
});
function task(name: string): Task {
  const found = allTasks().get(name);
  if (found === undefined || isGroup(found)) throw new Error(name);
  return found;
}

describe("a folder", () => {
  test.each([
    ["cmmlu_agronomy", "cmmlu/test/agronomy.csv"],
    ["cmmlu_agronomy", "test/agronomy.csv"],
    ["cmmlu_agronomy", "agronomy/test.jsonl"],
    ["mmlu_anatomy", "mmlu/test/anatomy_test.csv"],
    ["mmlu_anatomy", "mmlu-anatomy-test.jsonl"],
    ["mmlu_anatomy", "mmlu/anatomy/test-00000-of-00001.parquet"],
    ["mmlu_anatomy", "mmlu/anatomy/test/0000.parquet"],
    ["ceval-valid_logic", "ceval/val/logic_val.csv"],
    ["ceval-valid_logic", "ceval-exam/logic/validation.jsonl.gz"],
    ["gsm8k", "gsm8k-test.jsonl"],
    ["gsm8k", "gsm8k/main/test-00000-of-00001.parquet"],
    ["humaneval", "HumanEval.jsonl.gz"],
    ["minerva_math_num_theory", "MATH/number_theory/test.jsonl"],
    ["minerva_math500", "MATH-500/test.jsonl"],
  ])("holds %s as %s", (name, path) => {
    const root = mkdtempSync(join(folder, "layout-"));
    mkdirSync(dirname(join(root, path)), { recursive: true });
    writeFileSync(join(root, path), "");
    const { dataset } = task(name);
    expect(findSplit(root, dataset, dataset.split).map((found) => relative(root, found))).toEqual([path]);
  });
  test("of several parts is read in order; a subject's file is not that of another or of all", () => {
    const root = mkdtempSync(join(folder, "parts-"));
    mkdirSync(join(root, "mmlu", "anatomy"), { recursive: true });
    for (const name of ["test-00001-of-00002.parquet", "test-00000-of-00002.parquet", "test-x.parquet"])
      writeFileSync(join(root, "mmlu", "anatomy", name), "");
    writeFileSync(join(root, "mmlu-test.jsonl"), "");
    const files = findSplit(root, task("mmlu_anatomy").dataset, "test").map((path) => relative(join(root, "mmlu", "anatomy"), path));
    expect(files).toEqual(["test-00000-of-00002.parquet", "test-00001-of-00002.parquet"]);
    expect(findSplit(root, task("mmlu_virology").dataset, "test")).toEqual([]);
    expect(splitStems(task("mmlu_virology").dataset, "test")).not.toContain("mmlu-test");
    expect(belongsToStem("gsm8k/test.jsonl.exe", "gsm8k/test")).toBe(false);
  });
});

describe("the Hub", () => {
  const content = '{"question":"q","answer":"#### 1"}\n';
  const asked: string[] = [];
  let server: Server;
  beforeAll(async () => {
    const bytes = Buffer.from(content);
    const oid = createHash("sha1").update(`blob ${bytes.length}\0`).update(bytes).digest("hex");
    const entries = ["main/test.jsonl", "../main/test.jsonl", "main/train.jsonl", "README.md"].map((path) => ({
      type: "file",
      path,
      size: bytes.length,
      oid,
    }));
    server = createServer((request, response) => {
      const url = decodeURIComponent(request.url ?? "");
      asked.push(url);
      if (url.startsWith("/api/datasets/openai/gsm8k/tree/main"))
        response.setHeader("content-type", "application/json").end(JSON.stringify(entries));
      else if (url === "/datasets/openai/gsm8k/resolve/main/main/test.jsonl") response.end(bytes);
      else response.writeHead(404, { "content-type": "application/json" }).end("{}");
    });
    await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
    vi.stubEnv("HF_ENDPOINT", `http://127.0.0.1:${(server.address() as AddressInfo).port}`);
  });
  afterAll(() => {
    vi.unstubAllEnvs();
    server.close();
  });
  const options = () => ({ data: null, downloads: join(folder, "downloads"), skipBroken: false });

  test("gives the one file that is needed, once", async () => {
    const { docs, files } = await loadDocs(task("gsm8k"), "test", options());
    expect(docs).toEqual([{ question: "q", answer: "#### 1" }]);
    expect(files.map((path) => relative(folder, path))).toEqual(["downloads/gsm8k/main/test.jsonl"]);
    const count = asked.length;
    await loadDocs(task("gsm8k"), "test", options());
    expect(asked).toHaveLength(count);
    expect(asked.some((url) => url.includes("train"))).toBe(false);
  });
  test("without such a data set is a clear error", async () => {
    await expect(loadDocs(task("humaneval"), "test", options())).rejects.toThrow(/openai_humaneval: expected a data set.*404.*--data/);
  });
});
