/**
 * Runs the code blocks of one page in order, in a folder of their own, as a reader would who has `npm run moe`, `npx moe` and `moe` (the same program). Servers
 * (`moe serve`, `moe dashboard`) are started and used by what follows; they are told to end when the page does, or when another one takes
 * their port, and have to exit with 0. Ports that a page names are others here, which are free.
 */
import { spawn, type ChildProcess } from "node:child_process";
import { writeFileSync } from "node:fs";
import { createServer, type AddressInfo } from "node:net";
import { join } from "node:path";
import { fileKinds } from "./file-kinds.ts";
import { replaced, type Block } from "./markdown.ts";

export type Outcome =
  /** Run, or checked, and well. */
  | { readonly type: "ran" }
  /** An excerpt of output. */
  | { readonly type: "shown" }
  /** Every line of it is run by another test. */
  | { readonly type: "elsewhere" }
  | { readonly type: "skipped"; readonly why: string }
  | { readonly type: "failed"; readonly error: string };

export interface PageOptions {
  readonly folder: string;
  readonly env: Readonly<Record<string, string | undefined>>;
  /** Whether another test runs this line of a script. */
  readonly isElsewhere: (line: string) => boolean;
  /** Why a program that a block needs is not there; null where it is. */
  readonly lacks: (program: string) => string | null;
  readonly timeoutMs?: number;
}

export class PageRun {
  readonly #options: PageOptions;
  readonly #ports = new Map<number, number>();
  readonly #servers = new Map<number, Server>();
  #numPrograms = 0;

  constructor(options: PageOptions) {
    this.#options = options;
  }

  /** Never throws: what went wrong is the outcome. */
  async run(block: Block): Promise<Outcome> {
    try {
      return await this.#run(block);
    } catch (error) {
      return { type: "failed", error: `${block.page}:${block.line}: ${error instanceof Error ? error.message : String(error)}` };
    }
  }

  async #run(block: Block): Promise<Outcome> {
    const text = await this.#withFreePorts(replaced(block));
    for (const note of block.notes) {
      const why = note.type === "needs" ? this.#options.lacks(note.program) : null;
      if (why !== null) return { type: "skipped", why };
      if (note.type === "set up") await this.#shell(note.script);
    }
    switch (block.language) {
      case "text":
        return { type: "shown" };
      case "sh":
      case "bash":
        return await this.#script(text);
      case "ts":
      case "js": {
        const name = `block-${++this.#numPrograms}.${block.language === "ts" ? "ts" : "mjs"}`;
        writeFileSync(join(this.#options.folder, name), text);
        await this.#shell(`node ${name}`);
        return { type: "ran" };
      }
      case "json":
        this.#file(block, text);
        return { type: "ran" };
      default:
        throw new Error(`a block in "${block.language}": expected sh, bash, ts, js, json, or text for what a command prints`);
    }
  }

  /** The page says in the sentence before it which file this is, and the comment what is in it. */
  #file(block: Block, text: string): void {
    const note = block.notes.find((note) => note.type === "file");
    if (note === undefined) throw new Error("JSON without a comment that says of which file, and what it is");
    const read = fileKinds[note.kind];
    if (read === undefined) throw new Error(`"${note.kind}" is not known: ${Object.keys(fileKinds).join(", ")}`);
    if (!block.lead.includes(`\`${note.name}\``)) throw new Error(`the sentence before it does not name \`${note.name}\``);
    read(JSON.parse(text), note.name);
    writeFileSync(join(this.#options.folder, note.name), text);
  }

  async #script(script: string): Promise<Outcome> {
    let [ran, pending] = [false, ""];
    const flush = async (): Promise<void> => {
      if (pending.trim() !== "") await this.#shell(pending);
      pending = "";
    };
    for (const line of commandLines(script)) {
      const bare = line.replace(/\s+# .*$/, "").trim();
      if (bare === "" || bare.startsWith("#") || this.#options.isElsewhere(bare)) continue;
      ran = true;
      if (/^(mpirun .*)?(npm run moe --|npx moe|moe) (serve|dashboard)\b/.test(bare)) {
        await flush();
        await this.#serve(bare);
      } else pending += `${line}\n`;
    }
    await flush();
    return { type: ran ? "ran" : "elsewhere" };
  }

  /** Runs a script to its end. Throws with what it printed where it fails. */
  async #shell(script: string): Promise<void> {
    const { folder, env, timeoutMs = 120_000 } = this.#options;
    const child = spawn("bash", ["-e", "-o", "pipefail", "-c", script], {
      cwd: folder,
      env,
      stdio: ["ignore", "pipe", "pipe"],
      detached: true,
    });
    const output = collect(child);
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      killGroup(child);
    }, timeoutMs);
    const code = await exitOf(child);
    clearTimeout(timer);
    const problem = late ? `not finished after ${timeoutMs / 1000} s` : `exit code ${code}`;
    if (code !== 0) throw new Error(`${problem}:\n${script.trimEnd()}\n\n${output().slice(-4000)}`);
  }

  /** Starts a server, and waits until it says where it serves. */
  async #serve(line: string): Promise<void> {
    const [, named = /\bdashboard\b/.test(line) ? "7007" : "8000"] = /--port (\d+)/.exec(line) ?? [];
    const port = await this.#port(Number(named));
    await this.#end(port);
    const { folder, env, timeoutMs = 120_000 } = this.#options;
    const child = spawn("bash", ["-c", `exec ${line} --port ${port}`], {
      cwd: folder,
      env,
      stdio: ["ignore", "pipe", "pipe"],
      detached: true,
    });
    const output = collect(child);
    const server: Server = { line, child, output, exited: exitOf(child) };
    this.#servers.set(port, server);
    const from = performance.now();
    while (!output().includes(`:${port}`)) {
      if (child.exitCode !== null || performance.now() - from > timeoutMs) {
        killGroup(child);
        this.#servers.delete(port);
        throw new Error(`it does not serve: ${line}\n\n${output()}`);
      }
      await new Promise((done) => setTimeout(done, 20));
    }
  }
  async #end(port: number): Promise<void> {
    const server = this.#servers.get(port);
    if (server === undefined) return;
    this.#servers.delete(port);
    // mpirun takes SIGTERM for itself.
    server.child.kill(server.line.startsWith("mpirun") ? "SIGUSR2" : "SIGTERM");
    const timer = setTimeout(() => killGroup(server.child), 30_000);
    const code = await server.exited;
    clearTimeout(timer);
    if (code !== 0) throw new Error(`told to end, it exited with ${code}: ${server.line}\n\n${server.output().slice(-4000)}`);
  }

  /** Tells all servers to end. Throws where one does not end well. */
  async end(): Promise<void> {
    try {
      for (const port of this.#servers.keys()) await this.#end(port);
    } finally {
      for (const { child } of this.#servers.values()) killGroup(child);
    }
  }

  async #withFreePorts(text: string): Promise<string> {
    const address = /\b(127\.0\.0\.1|localhost):(\d{2,5})\b/g;
    for (const [, , port] of text.matchAll(address)) await this.#port(Number(port));
    return text.replaceAll(address, (_, host: string, port: string) => `${host}:${this.#ports.get(Number(port)) ?? port}`);
  }
  async #port(named: number): Promise<number> {
    const known = this.#ports.get(named);
    if (known !== undefined) return known;
    const server = createServer();
    await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
    const { port } = server.address() as AddressInfo;
    await new Promise((done) => server.close(done));
    this.#ports.set(named, port);
    return port;
  }
}

interface Server {
  readonly line: string;
  readonly child: ChildProcess;
  readonly output: () => string;
  readonly exited: Promise<number | null>;
}

/** Lines of a script, those that end in a backslash with the next one. */
function commandLines(script: string): string[] {
  const lines: string[] = [];
  let open = false;
  for (const line of script.split("\n")) {
    if (open) lines.push(`${lines.pop() ?? ""}\n${line}`);
    else lines.push(line);
    open = line.endsWith("\\");
  }
  return lines;
}

function collect(child: ChildProcess): () => string {
  let text = "";
  for (const stream of [child.stdout, child.stderr]) stream?.setEncoding("utf8").on("data", (piece: string) => (text += piece));
  return () => text;
}
function exitOf(child: ChildProcess): Promise<number | null> {
  return new Promise((resolve) => {
    child.on("close", resolve).on("error", () => resolve(null));
  });
}
function killGroup({ pid }: ChildProcess): void {
  if (pid === undefined) return;
  try {
    process.kill(-pid, "SIGKILL");
  } catch {
    // It has ended.
  }
}
