import { spawn } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { hostname, tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { lockFolder } from "./lock.ts";

let folder = "";
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "moe-lock-"));
});
afterEach(() => {
  rmSync(folder, { recursive: true, force: true });
});
const path = (): string => join(folder, "lock");
const here = hostname();
const free = "a run folder that no process trains in";

test("a folder is one process's until it lets go", () => {
  {
    using _ = lockFolder(folder, free);
    expect(JSON.parse(readFileSync(path(), "utf8"))).toMatchObject({ pid: process.pid, host: here });
    expect(() => lockFolder(folder, free)).toThrow(`${folder}: expected ${free}, got one of process ${process.pid}`);
  }
  expect(readdirSync(folder)).toEqual([]);
  using _ = lockFolder(folder, free);
});

test("the lock of another process that runs is respected, that of one that was killed is taken over", async () => {
  const child = spawn(process.execPath, ["-e", "setInterval(() => 0, 1000)"], { stdio: "ignore" });
  writeFileSync(path(), JSON.stringify({ pid: child.pid, host: here, started: null }));
  expect(() => lockFolder(folder, free)).toThrow(`got one of process ${child.pid}`);
  const ended = new Promise((resolve) => child.on("exit", resolve));
  child.kill("SIGKILL");
  await ended;
  {
    using _ = lockFolder(folder, free);
    expect(JSON.parse(readFileSync(path(), "utf8"))).toMatchObject({ pid: process.pid });
    expect(readdirSync(folder)).toEqual(["lock"]);
  }
});

// Only where the kernel says when a process began.
test.skipIf(!existsSync("/proc/self/stat"))("a process number that is used again does not hold the lock of the dead", () => {
  writeFileSync(path(), JSON.stringify({ pid: process.pid, host: here, started: "an earlier boot 1" }));
  using _ = lockFolder(folder, free);
  expect(readFileSync(path(), "utf8")).not.toContain("an earlier boot");
});

test("a lock of another machine, or one that nobody can read, is for a person to remove", () => {
  writeFileSync(path(), JSON.stringify({ pid: 1, host: "elsewhere", started: null }));
  expect(() => lockFolder(folder, free)).toThrow(/process 1 on elsewhere; if it no longer runs, remove .*lock/);
  writeFileSync(path(), "{]");
  expect(() => lockFolder(folder, free)).toThrow(/lock: expected the process that works here, got "\{\]"; remove it if none does/);
});

test("a lock that a full disk left empty holds nothing, and what is not ours is not removed", () => {
  writeFileSync(path(), "");
  {
    using _ = lockFolder(folder, free);
    writeFileSync(path(), "another's");
  }
  expect(readFileSync(path(), "utf8")).toBe("another's");
});
