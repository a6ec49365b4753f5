/**
 * Server-sent events: one stream a page, over which it hears that a run has more steps, that there are other runs, or what a served model does.
 * Files are watched only while somebody listens; a change is looked at once, however many listen, and told at most twice a second. File systems
 * that tell no changes (networks) are looked at every two seconds: one look at a file's size each.
 */
import { watch, type FSWatcher } from "node:fs";
import type { ServerResponse } from "node:http";
import type { Catalog } from "./catalog.ts";
import type { Events } from "./api.ts";
import type { DashboardRun } from "./run.ts";

const maxListeners = 64;
const tellMilliseconds = 500;
const lookMilliseconds = 2000;
const keepAliveMilliseconds = 15_000;
/** A reader that does not read is let go. */
const maxBufferedBytes = 4 << 20;

export class Hub {
  readonly #catalog: Catalog;
  readonly #listeners = new Set<ServerResponse>();
  readonly #watchers = new Map<string, FSWatcher>();
  readonly #told = new Map<string, { version: number; state: string; at: number }>();
  #timers: NodeJS.Timeout[] = [];
  #pending: NodeJS.Timeout | null = null;
  #closed = false;

  constructor(catalog: Catalog) {
    this.#catalog = catalog;
  }

  get numListeners(): number {
    return this.#listeners.size;
  }

  /** Takes over a response. False where there are too many. */
  listen(response: ServerResponse): boolean {
    if (this.#closed || this.#listeners.size >= maxListeners) return false;
    response.writeHead(200, {
      "content-type": "text/event-stream; charset=utf-8",
      "cache-control": "no-store",
      "x-content-type-options": "nosniff",
      connection: "keep-alive",
    });
    response.write("retry: 2000\n\n");
    this.#listeners.add(response);
    response.on("close", () => {
      this.#listeners.delete(response);
      if (this.#listeners.size === 0) this.#stopWatching();
    });
    if (this.#listeners.size === 1) this.#startWatching();
    this.watchOpenRuns();
    return true;
  }

  send<K extends keyof Events>(event: K, data: Events[K]): void {
    const text = `event: ${event}\ndata: ${JSON.stringify(data)}\n\n`;
    for (const response of this.#listeners) {
      if (response.writableLength > maxBufferedBytes) response.destroy();
      else response.write(text);
    }
  }

  /** Tells where a run is, unless that was told just now. */
  tell(run: DashboardRun): void {
    const before = this.#told.get(run.id);
    const now = performance.now();
    const { state } = run.summary();
    if (before !== undefined && before.version === run.version && before.state === state) return;
    if (before !== undefined && before.state === state && now - before.at < tellMilliseconds) {
      this.#later();
      return;
    }
    this.#told.set(run.id, { version: run.version, state, at: now });
    this.send("run", { id: run.id, state, index: run.index });
  }

  /** Watches folders of runs that somebody has opened. */
  watchOpenRuns(): void {
    if (this.#listeners.size === 0) return;
    this.#watch(this.#catalog.root, () => this.#rescan());
    for (const run of this.#catalog.runs) if (run.isOpen) this.#watch(run.folder, () => this.#later());
  }
  #watch(folder: string, onChange: () => void): void {
    if (this.#watchers.has(folder)) return;
    try {
      const watcher = watch(folder, { persistent: false }, onChange);
      watcher.on("error", () => {
        watcher.close();
        this.#watchers.delete(folder);
      });
      this.#watchers.set(folder, watcher);
    } catch {
      // Too many watchers or a file system without them: the look every two seconds finds the change.
    }
  }
  #rescan(): void {
    if (this.#catalog.scan()) this.send("runs", { reason: "changed" });
    this.#later();
  }

  /** Soon, and once however often it is asked for. */
  #later(): void {
    this.#pending ??= setTimeout(() => {
      this.#pending = null;
      this.#look();
    }, tellMilliseconds / 2);
  }
  #look(): void {
    for (const run of this.#catalog.runs) {
      if (!run.isOpen) continue;
      void run.update(() => this.tell(run)).then(() => this.tell(run));
    }
  }

  #startWatching(): void {
    this.#timers = [
      setInterval(() => this.#look(), lookMilliseconds),
      setInterval(() => this.#rescan(), 5 * lookMilliseconds),
      setInterval(() => {
        for (const response of this.#listeners) response.write(": still here\n\n");
      }, keepAliveMilliseconds),
    ];
    for (const timer of this.#timers) timer.unref();
  }
  #stopWatching(): void {
    for (const timer of this.#timers) clearInterval(timer);
    for (const watcher of this.#watchers.values()) watcher.close();
    this.#watchers.clear();
    this.#timers = [];
    if (this.#pending !== null) clearTimeout(this.#pending);
    this.#pending = null;
  }
  close(): void {
    this.#closed = true;
    this.#stopWatching();
    for (const response of this.#listeners) response.end();
    this.#listeners.clear();
  }
}
