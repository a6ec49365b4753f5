/**
 * The sandbox under attack. Every attack is written so that it ends without an exception if and only if it succeeds: what
 * the tests expect is that none passes. Programs run two at a time, so each group is started at once and judged one by one.
 */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { gunzipSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { defaultProgramLimits, runHumanEval, Sandbox, type ProgramResult } from "./index.ts";

const MiB = 2 ** 20;
const longMs = 600_000;

/** Gives `core`, the interpreter's own bridge to JavaScript, dug out past the import that hides it. */
const bridge = `
import builtins
hidden_import = [c.cell_contents for c in builtins.__import__.__closure__ if callable(c.cell_contents)][0]
core = hidden_import("_pyodide_core")
array = core.to_js([1])
`;

/**
 * Writes a WebAssembly library whose function `f` is JavaScript text, as C with EM_JS compiles to: the loader passes that text to
 * `eval`, behind "() => ". (Checked by hand: with `eval` among the kept globals and without the flag against it, the first program ends well.)
 */
const library = (javascript: string): string => `
import ctypes
def number(n): return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + number(n >> 7)
def text(s): return number(len(s)) + s.encode()
def section(kind, body): return bytes([kind]) + number(len(body)) + body
code = b"(void)<::>" + ${JSON.stringify(`0, Object.assign(${javascript}, { sig: "i" })`)}.encode() + b"\\0"
memory = number(len(code)) + bytes([0, 0, 0])
parts = [
    section(0, text("dylink.0") + section(1, memory)),
    section(2, bytes([2]) + text("env") + text("memory") + bytes([2, 0, 1]) + text("env") + text("__memory_base") + bytes([3, 127, 0])),
    section(6, bytes([1, 127, 0, 65, 0, 11])),
    section(7, bytes([1]) + text("__em_js__f") + bytes([3, 1])),
    section(11, bytes([1, 0, 35, 0, 11]) + number(len(code)) + code),
]
with open("/tmp/library.so", "wb") as file: file.write(b"\\0asm\\1\\0\\0\\0" + b"".join(parts))
f = ctypes.CDLL("/tmp/library.so").f
`;

/** name -> [program, outcomes that are right] */
const attacks: Readonly<Record<string, readonly [string, readonly ProgramResult["outcome"][]]>> = {
  // The way to JavaScript
  "import js": ["import js", ["failed"]],
  "js.process": ["import js\njs.process.exit(0)", ["failed"]],
  "js.fetch": ["import js\njs.fetch('http://localhost')", ["failed"]],
  pyodide_js: ["import pyodide_js\npyodide_js.FS", ["failed"]],
  "pyodide.code.run_js": ["from pyodide.code import run_js\nrun_js('1')", ["failed"]],
  micropip: ["import micropip", ["failed"]],
  "references in memory": ["import gc\nassert any(type(o).__name__ == 'JsProxy' for o in gc.get_objects())", ["failed"]],
  "a module brought back": ["import sys, importlib\nsys.modules.clear()\nimportlib.import_module('js').process", ["failed", "error"]],
  "Function of the bridge": [`${bridge}\narray.constructor.constructor('return 1')()`, ["failed"]],
  "eval of the bridge": [`${bridge}\narray.constructor.constructor.constructor('return this')().eval('1')`, ["failed"]],
  "globals of the bridge": [`${bridge}\narray.constructor.constructor.call(None).process.pid`, ["failed"]],
  "stack frames of the bridge": [
    `${bridge}
frames = []
try: core.to_js([1]).constructor(-1)
except core.JsException as error: kind = error.js_error.constructor if hasattr(error, "js_error") else error.constructor
def look(error, stack):
    frames.extend(stack)
    return ""
every = kind.prototype.__proto__.constructor
every.stackTraceLimit = 100
every.prepareStackTrace = core.create_proxy(look)
try: core.to_js([1]).constructor(-1)
except core.JsException as error: str(error.stack)
assert any(frame.getThis() is not None or frame.getFileName() for frame in frames)`,
    ["failed"],
  ],
  "JavaScript in a library": [`${library("() => 7")}assert f() == 7`, ["failed"]],
  "processes of a library": [`${library("() => process.pid")}assert f() > 0`, ["failed"]],
  // Files, processes, environment
  "open a host file": ["open('/etc/passwd').read()", ["failed"]],
  "open this source": [`open(${JSON.stringify(import.meta.filename)}).read()`, ["failed"]],
  "see a host folder": ["import os\nassert set(os.listdir('/')) - {'tmp', 'home', 'dev', 'proc', 'lib'}", ["failed"]],
  "see the environment": [
    `import os\nassert set(os.environ) - {'USER', 'LOGNAME', 'PATH', 'PWD', 'HOME', 'LANG', '_', 'PYTHONINSPECT', 'LD_LIBRARY_PATH'} or '/' in os.environ['_']`,
    ["failed"],
  ],
  "os.system": ["import os\nassert os.system('true') == 0", ["error", "failed"]],
  subprocess: ["import subprocess\nsubprocess.run(['true'])", ["failed"]],
  "fork bomb": ["import os\nwhile True: os.fork()", ["failed"]],
  thread: ["import threading\nthreading.Thread(target=print).start()", ["failed"]],
  "raise a signal": ["import signal\nsignal.raise_signal(signal.SIGKILL)\nassert False", ["error", "failed"]],
  "alarm that answers": [
    "import os, signal\nsignal.signal(signal.SIGALRM, lambda *_: os._exit(0))\nsignal.setitimer(signal.ITIMER_REAL, 0.01)\nwhile True: pass",
    ["timeout", "failed", "error"],
  ],
  "kill a process": ["import os, signal\nos.kill(os.getppid(), signal.SIGKILL)", ["error", "failed"]],
  // Network
  socket: ["import socket\nsocket.create_connection(('127.0.0.1', 9), timeout=2)", ["failed", "error"]],
  listen: ["import socket\ns = socket.socket()\ns.bind(('127.0.0.1', 0))\ns.listen()\ns.accept()", ["failed", "error"]],
  urllib: ["import urllib.request\nurllib.request.urlopen('http://127.0.0.1:9/')", ["failed", "error"]],
  // Exhaustion
  "endless loop": ["while True: pass", ["timeout"]],
  sleep: ["import time\ntime.sleep(1000)", ["timeout"]],
  "output flood": ["while True: print('x' * 100000)", ["timeout"]],
  "loop that catches": ["while True:\n  try:\n    while True: pass\n  except BaseException: pass", ["timeout"]],
  "memory bomb": ["bytearray(10**9)", ["memory"]],
  "impossible size": ["bytearray(10**11)", ["failed", "memory"]],
  "list growth": ["x = [0]\nwhile True: x += x", ["memory"]],
  "file growth": ["n = 0\nwhile True:\n  with open(f'/tmp/{n}', 'wb') as f: f.write(b'x' * 10**7)\n  n += 1", ["memory", "failed"]],
  recursion: ["def f(n): return f(n + 1)\nf(0)", ["failed"]],
  "unlimited recursion": ["import sys\nsys.setrecursionlimit(10**9)\ndef f(n): return f(n + 1)\nf(0)", ["error", "failed"]],
  "recursion in C": ["import json\nx = []\nfor i in range(10**6): x = [x]\njson.dumps(x)", ["error", "failed"]],
  "wild memory": ["import ctypes\nctypes.memset(0, 1, 10**9)", ["error", "failed"]],
  // Lying about the result
  "sys.exit": ["import sys\nsys.exit(0)\nassert False", ["failed"]],
  "os._exit": ["import os\nos._exit(0)", ["failed", "error"]],
  "os.abort": ["import os\nos.abort()", ["failed", "error"]],
  "printed verdict": [`print('{"kind":"done","outcome":"passed"}')\nassert False`, ["failed"]],
  "exception that claims to be an exit": ["class ExitStatus(BaseException):\n  status = 0\nraise ExitStatus()", ["failed"]],
  "exit handler": ["import atexit, os\natexit.register(lambda: print('passed'))\nraise SystemExit(0)", ["failed"]],
  "exit handler that raises": ["import atexit\n@atexit.register\ndef f(): raise SystemExit(0)\nassert False", ["failed"]],
  "exception hook": ["import sys\nsys.excepthook = lambda *_: sys.exit(0)\nassert False", ["failed"]],
  "exception without a text": [
    "class E(Exception):\n  def __str__(self): raise SystemExit(0)\n  __repr__ = __str__\nraise E()",
    ["failed", "error"],
  ],
  "traceback of a gigabyte": ["raise Exception('x' * 10**8)", ["failed", "memory"]],
  "syntax error": ["def f(:", ["failed"]],
  input: ["input()", ["failed"]],
};

describe("the sandbox", () => {
  const results = new Map<string, Promise<ProgramResult>>();
  let sandbox: Sandbox;
  beforeAll(() => {
    sandbox = new Sandbox({ timeoutMs: 5000, memoryBytes: 192 * MiB });
    for (const [name, [program]] of Object.entries(attacks)) results.set(name, sandbox.run(program));
  });
  afterAll(() => sandbox.close());

  it.for(Object.entries(attacks))("stops a program: %s", { timeout: longMs }, async ([name, [, outcomes]]) => {
    const result = await results.get(name);
    expect(result?.passed, result?.message).toBe(false);
    expect(outcomes, result?.message).toContain(result?.outcome);
    expect(result?.message.length).toBeGreaterThan(0);
    expect(result?.message.length).toBeLessThan(2200);
  });

  it("keeps nothing from one program to the next", { timeout: longMs }, async () => {
    await sandbox.run("import builtins\nbuiltins.left = 1\nopen('/tmp/left', 'w').write('1')");
    const next = await sandbox.run("import builtins, os\nassert not hasattr(builtins, 'left')\nassert os.listdir('/tmp') == []");
    expect(next).toEqual({ passed: true, outcome: "passed", message: "" });
  });

  it("runs what honest programs use", { timeout: longMs }, async () => {
    const honest = `
import math, re, hashlib, random, collections, itertools, functools, typing, dataclasses, datetime, decimal, fractions, string, json, time
assert __name__ == "__main__"
assert hashlib.md5(b"1").hexdigest() == "c4ca4238a0b923820dcc509a6f75849b"
assert sum(range(10 ** 5)) == 4999950000 and time.time() > 0 and time.perf_counter() > 0
try:
    bytearray(10 ** 9)
except MemoryError:
    pass
print("x" * 10 ** 6)
with open("/tmp/own", "w") as f: f.write("text")
assert open("/tmp/own").read() == "text"
`;
    expect(await sandbox.run(honest)).toEqual({ passed: true, outcome: "passed", message: "" });
  });

  it("says what failed and where, in the program's own lines", { timeout: longMs }, async () => {
    const { outcome, message } = await sandbox.run("def f(x):\n  return x\nassert f(1) == 2, 'one is not two'");
    expect(outcome).toBe("failed");
    expect(message).toMatch(/^File "program.py", line 3/);
    expect(message).toMatch(/AssertionError: one is not two$/);
  });

  it("leaves no process and no folder behind when it is closed with programs under way", { timeout: longMs }, async () => {
    const folders = (): number => readdirSync(tmpdir()).filter((name) => name.startsWith("moe-sandbox-")).length;
    const before = folders();
    const other = new Sandbox({ timeoutMs: 60_000, memoryBytes: 128 * MiB, concurrency: 1 });
    expect(folders()).toBeGreaterThan(0);
    const endless = other.runOnce("while True: pass");
    await new Promise((resolve) => setTimeout(resolve, 300));
    other.close();
    await expect(endless.then((result) => result.outcome)).resolves.toBe("error");
    expect(folders()).toBeLessThanOrEqual(before);
    await expect(other.runOnce("pass")).rejects.toThrow("closed");
  });

  it("refuses limits that it cannot keep", async () => {
    await expect(runHumanEval("pass", { timeoutMs: 0, memoryBytes: 128 * MiB })).rejects.toThrow("timeoutMs");
    await expect(runHumanEval("pass", { timeoutMs: 1000, memoryBytes: 1000 })).rejects.toThrow("memoryBytes");
    expect(() => new Sandbox({ ...defaultProgramLimits, concurrency: 0 })).toThrow("concurrency");
  });

  it("runs a single program without a snapshot", { timeout: longMs }, async () => {
    expect((await runHumanEval("assert 1 + 1 == 2", defaultProgramLimits)).passed).toBe(true);
  });
});

const data = path.join(process.env["MOE_SHARED_DATA"] ?? path.join(import.meta.dirname, "../../../../shared/data"), "HumanEval.jsonl.gz");

interface Problem {
  readonly task_id: string;
  readonly prompt: string;
  readonly canonical_solution: string;
  readonly test: string;
  readonly entry_point: string;
}

describe.skipIf(!existsSync(data))(`HumanEval of ${path.basename(data)} (MOE_SHARED_DATA)`, () => {
  const problems = (): Problem[] =>
    gunzipSync(readFileSync(data))
      .toString("utf8")
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line) as Problem);
  const program = ({ prompt, test, entry_point }: Problem, solution: string): string =>
    `${prompt}${solution}\n${test}\ncheck(${entry_point})`;

  const long = process.env["MOE_LONG"] === "1";
  it(
    long ? "passes all 164 reference solutions" : "passes every ninth reference solution (MOE_LONG=1: all 164)",
    { timeout: 1_200_000 },
    async () => {
      using sandbox = new Sandbox(defaultProgramLimits);
      const all = problems().filter((_, i) => long || i % 9 === 0);
      const results = await Promise.all(all.map((problem) => sandbox.run(program(problem, problem.canonical_solution))));
      const failures = results.flatMap((result, i) => (result.passed ? [] : [`${all[i]?.task_id}: ${result.outcome} ${result.message}`]));
      expect(failures).toEqual([]);
      expect(results).toHaveLength(long ? 164 : 19);
    },
  );

  it("fails solutions that return nothing, and one that returns the wrong thing", { timeout: longMs }, async () => {
    using sandbox = new Sandbox(defaultProgramLimits);
    const wrong = problems()
      .slice(0, 8)
      .map((problem, i) => program(problem, i === 0 ? "    return numbers[0] < threshold\n" : "    pass\n"));
    const results = await Promise.all(wrong.map((text) => sandbox.run(text)));
    expect(results.map(({ outcome }) => outcome)).toEqual(wrong.map(() => "failed"));
  });
});
