/**
 * The child process of the sandbox: loads Pyodide, gives away everything it may do, then runs one program and says how it
 * ended. Started by interpreter.ts, never imported; it imports nothing of ours, because its process may read nothing of ours.
 *
 * Order matters. While Pyodide loads, the process may read Pyodide's folder (Node's permission model allows nothing else).
 * Before the program arrives
 * - the right to read is dropped,
 * - every function of `fs`, `child_process`, `net`, ... that Pyodide's own code holds a reference to is replaced by one that
 *   throws (Emscripten's `system()` really calls `spawnSync`),
 * - every global that is not the language itself is deleted (`process`, `fetch`, `WebSocket`, ...); code from strings
 *   (`eval`, `Function`) is off by a flag of the process, and errors carry no frames, through which callers and paths can be had,
 * - Python loses the modules that lead to JavaScript (`js`, `pyodide_js`, ...). The `js` module was empty from the start.
 *
 * Each of these is a wall behind another one. The walls that do not depend on JavaScript being well-behaved are WebAssembly,
 * the permission model, and the parent, which kills this process.
 *
 * Messages, over the channel of `child_process`: see `WorkerRequest` and `WorkerReply`. What the program prints is counted
 * and thrown away. The reply carries the nonce that came with the program; it stays in a local variable of this file.
 */
import childProcess from "node:child_process";
import cluster from "node:cluster";
import dgram from "node:dgram";
import dns from "node:dns";
import fs from "node:fs";
import inspector from "node:inspector";
import module, { syncBuiltinESMExports } from "node:module";
import net from "node:net";
import path from "node:path";
import process from "node:process";
import { pathToFileURL } from "node:url";
import vm from "node:vm";
import workerThreads from "node:worker_threads";
import type { loadPyodide, PyodideAPI } from "pyodide";

/** From the parent: first `start`, then one `run`. */
export type WorkerRequest =
  | { readonly kind: "start"; readonly snapshot: Uint8Array | null; readonly makeSnapshot: boolean }
  | { readonly kind: "run"; readonly nonce: string; readonly program: string };

/** To the parent: `ready` (with a snapshot if one was asked for) or `unready`, then `done`. */
export type WorkerReply =
  | { readonly kind: "ready"; readonly snapshot: Uint8Array | null }
  | { readonly kind: "unready"; readonly message: string }
  | { readonly kind: "done"; readonly nonce: string; readonly outcome: "passed" | "failed" | "memory" | "error"; readonly message: string };

type Refusable = Record<string, unknown>;

/** What is left of the global object: the language, and what the interpreter calls while it runs. */
const keptGlobals: ReadonlySet<string> = new Set(
  (
    "Object Function Array Number parseFloat parseInt Infinity NaN undefined Boolean String Symbol Date Promise RegExp Error AggregateError " +
    "EvalError RangeError ReferenceError SyntaxError TypeError URIError JSON Math Intl ArrayBuffer Atomics Uint8Array Int8Array Uint16Array " +
    "Int16Array Uint32Array Int32Array Float32Array Float64Array Uint8ClampedArray BigUint64Array BigInt64Array DataView Map BigInt Set " +
    "WeakMap WeakSet WeakRef Proxy Reflect FinalizationRegistry decodeURI decodeURIComponent encodeURI encodeURIComponent escape unescape " +
    "isFinite isNaN globalThis Iterator SharedArrayBuffer Float16Array SuppressedError DisposableStack AsyncDisposableStack WebAssembly " +
    "TextDecoder TextEncoder performance setTimeout clearTimeout queueMicrotask"
  ).split(" "),
);

/** Most characters of an exception's text that go to the parent. */
const maxMessageCharacters = 2000;

/** What tracebacks call the program. */
const programName = "program.py";

/** Imported before the snapshot is taken, so that programs find them ready. */
const preloaded = "import bisect, collections, copy, functools, hashlib, heapq, itertools, math, operator, random, re, string, typing\n";

/** Takes from Python what leads to JavaScript; keeps the interpreter's own references alive, it works on them. */
const withoutJavaScript = `
def _scrub():
    import sys, builtins
    roots = {"js", "pyodide_js", "pyodide", "_pyodide", "_pyodide_core", "webbrowser", "micropip", "pyodide_http"}
    for name in list(sys.modules):
        if name.split(".")[0] in roots:
            del sys.modules[name]
    sys.meta_path[:] = [f for f in sys.meta_path if getattr(f, "__module__", "").split(".")[0] not in roots]
    find = builtins.__import__
    def import_(name, *args, **kwargs):
        if name.split(".")[0] in roots:
            raise ModuleNotFoundError(f"No module named '{name}': programs have no way to JavaScript", name=name)
        return find(name, *args, **kwargs)
    builtins.__import__ = import_
_scrub()
del _scrub
`;

function refuse(): never {
  throw new Error("not available to a program in the sandbox");
}

/** Replaces the functions among the properties of `holder`. Classes become functions that throw as well. */
function refuseAll(holder: object): void {
  for (const name of Object.getOwnPropertyNames(holder)) {
    const property = Object.getOwnPropertyDescriptor(holder, name);
    if (typeof property?.value !== "function" || name === "constructor") continue;
    if (property.writable === true) (holder as Refusable)[name] = refuse;
    else if (property.configurable === true) Object.defineProperty(holder, name, { value: refuse });
  }
}

/** From here on this process can compute and answer the parent, nothing else. */
function giveUpRights(): void {
  const { prototype: socket } = net.Socket;
  const { prototype: server } = net.Server;
  socket.connect = refuse;
  server.listen = refuse;
  dgram.Socket.prototype.bind = refuse;
  dgram.Socket.prototype.send = refuse as typeof dgram.Socket.prototype.send;
  for (const holder of [fs, fs.promises, childProcess, dns, dns.promises, dgram, inspector, vm, workerThreads, cluster]) refuseAll(holder);
  const names = ["createRequire", "register", "registerHooks", "_load", "_resolveFilename", "runMain"];
  for (const name of names) if (name in module) (module as unknown as Refusable)[name] = refuse;
  syncBuiltinESMExports();
  const own = process as unknown as Refusable & { permission?: { drop?: (scope: string) => void } };
  own.permission?.drop?.("fs.read");
  for (const name of Object.getOwnPropertyNames(process)) {
    // `emit`, `on` and their like carry the channel; `nextTick` carries promises.
    if (
      /^(_?kill|abort|dlopen|binding|_linkedBinding|getBuiltinModule|chdir|send|disconnect|_debug.*|set.*id|initgroups|umask|loadEnvFile|execve|report)$/.test(
        name,
      )
    ) {
      Object.defineProperty(process, name, { value: refuse, configurable: true, writable: true });
    }
  }
  for (const name of Object.getOwnPropertyNames(globalThis)) {
    if (!keptGlobals.has(name)) Reflect.deleteProperty(globalThis, name);
  }
  // Emscripten reports its own end here; nobody listens.
  const silent = (): void => undefined;
  // An accessor, because the interpreter assigns to it.
  Object.defineProperty(Error, "stackTraceLimit", { get: () => 0, set: silent, configurable: false });
  (globalThis as unknown as Refusable)["console"] = { log: silent, warn: silent, error: silent, info: silent, debug: silent };
}

async function load(folder: string, snapshot: Uint8Array | null, makeSnapshot: boolean): Promise<PyodideAPI> {
  // Emscripten asks for the flags of open(2) by a function that the permission model forbids as a whole.
  // It also tells programs its own path, which is none of their business.
  process.argv.splice(1, process.argv.length, "program");
  (process as unknown as Refusable)["binding"] = () => ({ fs: fs.constants });
  const { loadPyodide: start } = (await import(pathToFileURL(path.join(folder, "pyodide.mjs")).href)) as {
    loadPyodide: typeof loadPyodide;
  };
  const silent = (): void => undefined;
  // (The copy begins at an address that is a multiple of 4, which the loader takes for granted.)
  const python = await start({
    indexURL: folder,
    jsglobals: Object.create(null) as object,
    env: { HOME: "/home/program" },
    stdin: () => null,
    stdout: silent,
    stderr: silent,
    ...(makeSnapshot ? { _makeSnapshot: true } : {}),
    ...(snapshot === null ? {} : { _loadSnapshot: new Uint8Array(snapshot) }),
  });
  if (snapshot === null) python.runPython(preloaded);
  return python;
}

/** How a program that threw ended: `type` is the Python exception's name where there is one. */
function explain(error: unknown): { outcome: "failed" | "memory" | "error"; message: string } {
  const { type, message, name, status } = error as { type?: unknown; message?: unknown; name?: unknown; status?: unknown };
  if (name === "ExitStatus" || typeof status === "number") return { outcome: "failed", message: "the program ended the interpreter" };
  const text = typeof message === "string" ? message.trim() : "unknown error";
  if (typeof type !== "string") {
    const message = `the interpreter broke: ${text.slice(0, maxMessageCharacters)}`;
    return { outcome: /out of memory|allocation failed/i.test(text) ? "memory" : "error", message };
  }
  // Above the program's own lines stand the interpreter's; the last lines name the exception and what it says.
  const own = text.slice(Math.max(0, text.indexOf(`  File "${programName}"`))).slice(-maxMessageCharacters);
  return { outcome: type === "MemoryError" ? "memory" : "failed", message: own.trim() };
}

function serve(): void {
  const send = process.send?.bind(process);
  const folder = process.argv[2];
  if (send === undefined || folder === undefined) throw new Error("this file is started by the sandbox, with a channel and a folder");
  const reply = (message: WorkerReply): void => void send(message);
  let run: ((program: string) => void) | undefined;
  const start = async (request: WorkerRequest & { kind: "start" }): Promise<void> => {
    try {
      const python = await load(folder, request.snapshot, request.makeSnapshot);
      if (request.makeSnapshot) {
        const { makeMemorySnapshot } = python as unknown as { makeMemorySnapshot: () => Uint8Array };
        reply({ kind: "ready", snapshot: makeMemorySnapshot.call(python) });
        return;
      }
      const runPython = python.runPython.bind(python);
      giveUpRights();
      runPython(withoutJavaScript);
      // Globals of its own under the name a script has, made while the interpreter is still trusted.
      const globals: unknown = runPython(`{"__name__": "__main__", "__builtins__": __builtins__}`);
      run = (program) => void runPython(program, { globals: globals as never, filename: programName });
      reply({ kind: "ready", snapshot: null });
    } catch (error) {
      reply({ kind: "unready", message: error instanceof Error ? `${error.name}: ${error.message}` : String(error) });
    }
  };
  process.on("message", (request: WorkerRequest) => {
    if (request.kind === "start") {
      void start(request);
      return;
    }
    const { nonce, program } = request;
    let ending: { outcome: "passed" | "failed" | "memory" | "error"; message: string };
    try {
      if (run === undefined) throw new Error("run before ready");
      run(program);
      ending = { outcome: "passed", message: "" };
    } catch (error) {
      ending = explain(error);
    }
    reply({ kind: "done", nonce, ...ending });
  });
}

serve();
