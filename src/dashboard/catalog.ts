/**
 * Which folders below the root the dashboard shows: runs (metrics.jsonl, or a configuration beside checkpoints) and folders with files that
 * it can show. A request names one by its id, which is looked up here and nowhere else: no request ever holds a path.
 */
import { createHash } from "node:crypto";
import { realpathSync, statSync } from "node:fs";
import { join, relative } from "node:path";
import { fileError, MoeError } from "../util/errors.ts";
import { systemError } from "../util/files.ts";
import type { RunList } from "./api.ts";
import { listInside } from "./inside.ts";
import { DashboardRun } from "./run.ts";

const maxDepth = 5;
const maxFolders = 5000;
const maxRuns = 500;
const skipped = new Set(["checkpoints", "tokens", "node_modules"]);
/** A folder with one of these is shown even without a run. */
const shown = /^(upcycling\.json|results_.*\.json|plan.*\.json|timeline.*\.json|.*trace.*\.json)$/i;

export class Catalog {
  readonly root: string;
  readonly #runs = new Map<string, DashboardRun>();
  #truncated = false;

  /** Throws `file` where `folder` is none. */
  constructor(folder: string) {
    try {
      this.root = realpathSync(folder);
      if (!statSync(this.root).isDirectory())
        throw fileError(folder, "the folder of a run, or a folder of runs", "something that is no folder");
    } catch (error) {
      throw error instanceof MoeError ? error : systemError(folder, "the folder of a run, or a folder of runs", error);
    }
    this.scan();
  }

  get runs(): readonly DashboardRun[] {
    return [...this.#runs.values()];
  }
  find(id: string): DashboardRun | null {
    return this.#runs.get(id) ?? null;
  }

  /** Looks for runs again; those that are known stay as they are. True when the list changed. */
  scan(): boolean {
    const found = new Set<string>();
    // Folders of a run that are no runs themselves are its own: what they hold is shown with it.
    const queue = [{ folder: this.root, depth: 0, ofRun: false }];
    let changed = false;
    let visited = 0;
    this.#truncated = false;
    for (let next = queue.shift(); next !== undefined; next = queue.shift()) {
      if (++visited > maxFolders || found.size >= maxRuns) {
        this.#truncated = true;
        break;
      }
      const { folder, depth, ofRun } = next;
      const { files, folders } = listInside(folder);
      const isRun = files.includes("metrics.jsonl") || (files.includes("config.json") && folders.includes("checkpoints"));
      if (isRun || (!ofRun && files.some((file) => shown.test(file)))) {
        const id = idOf(this.root, folder);
        found.add(id);
        const kind = isRun ? "run" : "files";
        if (this.#runs.get(id)?.kind !== kind) {
          this.#runs.set(id, new DashboardRun(id, relative(this.root, folder) || ".", folder, kind));
          changed = true;
        }
      }
      if (depth >= maxDepth) continue;
      const inner = folders.filter((name) => !name.startsWith(".") && !skipped.has(name));
      queue.push(...inner.map((name) => ({ folder: join(folder, name), depth: depth + 1, ofRun: isRun })));
    }
    for (const id of this.#runs.keys())
      if (!found.has(id)) {
        this.#runs.delete(id);
        changed = true;
      }
    return changed;
  }

  list(server: string | null): RunList {
    const runs = this.runs.map((run) => run.summary());
    return { root: this.root, runs: runs.toSorted((a, b) => b.modified - a.modified), truncated: this.#truncated, server };
  }
}

function idOf(root: string, folder: string): string {
  return createHash("sha256").update(relative(root, folder)).digest("hex").slice(0, 12);
}
