/**
 * Long-lived helper processes that answer one line with one line: the Python rivals, and the roof. A line at a time means that a
 * helper only computes while it is asked to.
 */
import { spawn, spawnSync, type ChildProcessWithoutNullStreams } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, renameSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface, type Interface } from "node:readline";

/** Files that a run makes and the next may use again: converted weights, the compiled roof. Outside the repository. */
export function cacheFolder(): string {
  const folder = join(tmpdir(), "moe-bench");
  mkdirSync(folder, { recursive: true });
  return folder;
}

/** A process that answers each line with a line. */
export class LineProcess implements Disposable {
  readonly #child: ChildProcessWithoutNullStreams;
  readonly #lines: Interface;
  readonly #what: string;
  #errors = "";
  #waiting: { resolve: (line: string) => void; reject: (error: Error) => void } | null = null;
  #ended: Error | null = null;

  constructor(command: string, args: readonly string[], env: Readonly<Record<string, string>> = {}) {
    this.#what = [command, ...args].join(" ");
    this.#child = spawn(command, args, { stdio: ["pipe", "pipe", "pipe"], env: { ...process.env, ...env } });
    this.#child.stderr.on("data", (chunk: Buffer) => {
      this.#errors = (this.#errors + chunk.toString()).slice(-4000);
    });
    this.#child.stdin.on("error", () => undefined);
    this.#child.on("error", (error) => this.#end(error));
    this.#child.on("exit", (code, signal) => this.#end(new Error(`${this.#what}: ended with ${signal ?? code}\n${this.#errors}`)));
    this.#lines = createInterface({ input: this.#child.stdout });
    this.#lines.on("line", (line) => {
      this.#waiting?.resolve(line);
      this.#waiting = null;
    });
  }

  #end(error: Error): void {
    this.#ended ??= error;
    this.#waiting?.reject(error);
    this.#waiting = null;
  }

  /** Sends a line and waits for the answer, at most `timeoutMs`; a process that is late is killed. */
  async ask(line: string, timeoutMs = 600_000): Promise<string> {
    if (this.#ended !== null) throw this.#ended;
    if (this.#waiting !== null) throw new Error(`${this.#what}: asked before the last answer came`);
    const answer = new Promise<string>((resolve, reject) => {
      this.#waiting = { resolve, reject };
    });
    const timer = setTimeout(() => {
      this.#end(new Error(`${this.#what}: no answer within ${timeoutMs / 1000} s`));
      this.#child.kill("SIGKILL");
    }, timeoutMs);
    this.#child.stdin.write(`${line}\n`);
    try {
      return await answer;
    } finally {
      clearTimeout(timer);
    }
  }

  /** The end of what it wrote to standard error. */
  get errors(): string {
    return this.#errors;
  }

  [Symbol.dispose](): void {
    this.#lines.close();
    this.#child.stdin.end();
    this.#child.kill();
  }
}

/** A Python process that serves the files of `rival/` (see `rival/serve.py`). */
export class PythonRival implements Disposable {
  readonly #process: LineProcess;

  constructor(env: Readonly<Record<string, string>> = {}) {
    const folder = join(import.meta.dirname, "rival");
    this.#process = new LineProcess(pythonPath(), [join(folder, "serve.py")], { PYTHONDONTWRITEBYTECODE: "1", ...env });
  }

  /** Runs `op` ("linear.sample") with keyword arguments. Throws where it fails. */
  async call(op: string, args: Readonly<Record<string, unknown>> = {}, timeoutMs?: number): Promise<Record<string, unknown>> {
    const answer = JSON.parse(await this.#process.ask(JSON.stringify({ op, ...args }), timeoutMs)) as Record<string, unknown>;
    if (answer["error"] !== undefined) throw new Error(`${op}: ${String(answer["error"])}\n${this.#process.errors}`);
    return answer;
  }

  /** `call` for operations that answer with a number under `field`. */
  async number(op: string, args: Readonly<Record<string, unknown>>, field: string, timeoutMs?: number): Promise<number> {
    const value = (await this.call(op, args, timeoutMs))[field];
    if (typeof value !== "number") throw new Error(`${op}: expected a number under ${field}, got ${String(value)}`);
    return value;
  }

  [Symbol.dispose](): void {
    this.#process[Symbol.dispose]();
  }
}

/** `MOE_PYTHON`, else the environment that `setup.sh` makes, else `python3`. */
function pythonPath(): string {
  const own = join(import.meta.dirname, ".venv", "bin", "python");
  return process.env["MOE_PYTHON"] || (existsSync(own) ? own : "python3");
}

export type RoofLoop = "bandwidth" | "fma" | "dot";

/** The roof: loops of `native/roof.c`, compiled for this machine when first needed. */
export class Roof implements Disposable {
  readonly #process: LineProcess;

  constructor() {
    const source = join(import.meta.dirname, "native", "roof.c");
    const hash = createHash("sha256").update(readFileSync(source)).digest("hex").slice(0, 12);
    const binary = join(cacheFolder(), `roof-${hash}`);
    if (!existsSync(binary)) {
      const temporary = `${binary}.${process.pid}`;
      const { status, stderr } = spawnSync("cc", ["-O3", "-march=native", "-ffp-contract=fast", "-pthread", "-o", temporary, source]);
      if (status !== 0) throw new Error(`cc ${source}: ${String(stderr)}`);
      renameSync(temporary, binary);
    }
    this.#process = new LineProcess(binary, []);
  }

  /** Billions of bytes or floating-point operations a second. */
  async sample(loop: RoofLoop, threads: number): Promise<number> {
    return Number(await this.#process.ask(`${loop} ${threads}`));
  }
  /** Most arithmetic of a type: multiply-adds of f32, or where that is more the bf16 instruction. For two threads, the best of one and two. */
  async arithmetic(dtype: "f32" | "bf16", threads: number): Promise<number> {
    const loops: RoofLoop[] = dtype === "f32" ? ["fma"] : ["fma", "dot"];
    let best = 0;
    for (const loop of loops) for (let t = 1; t <= threads; t++) best = Math.max(best, await this.sample(loop, t));
    return best;
  }
  /** Most bytes read a second, by one thread or two. */
  async bandwidth(): Promise<number> {
    return Math.max(await this.sample("bandwidth", 1), await this.sample("bandwidth", 2));
  }

  [Symbol.dispose](): void {
    this.#process[Symbol.dispose]();
  }
}
