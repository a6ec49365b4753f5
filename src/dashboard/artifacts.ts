/**
 * Files of a run folder beside its metrics: results of `moe eval`, Chrome traces, reports of the planner, the receipt of upcycling. What a
 * file is, its content says; names only say which are worth a look. Looked for in the folder itself and one level below.
 */
import { createHash } from "node:crypto";
import { join } from "node:path";
import type { ArtifactAnswer, ArtifactKind, ArtifactSummary } from "./api.ts";
import { evaluationAnswer } from "./evaluation.ts";
import { isPlainName, listInside, readInside, statInside } from "./inside.ts";
import { asArray, asObject, asText, boundedJson, parseJson } from "./record.ts";
import { traceAnswer } from "./trace.ts";

const maxBytes = 64 << 20;
const maxFiles = 100;
/** Files that a run folder has anyway, and folders with thousands of them. */
const otherFiles = new Set(["config.json", "summary.json", "tokenizer.json", "generation_config.json", "tokenizer_config.json"]);
const otherFolders = new Set(["checkpoints", "tokens", "data", "node_modules", "tokenizer"]);

interface Known {
  readonly folder: string;
  readonly file: string;
  readonly summary: ArtifactSummary;
  readonly stamp: string;
  readonly json: WeakRef<Readonly<Record<string, unknown>>>;
}

/** What a parsed file is, or null where it is nothing that the dashboard shows. */
export function kindOf(json: unknown, file: string): ArtifactKind | null {
  const object = asObject(json);
  if (object === null) return null;
  if (Array.isArray(object["traceEvents"])) return "trace";
  if (asObject(object["results"]) !== null && (asObject(object["versions"]) !== null || asObject(object["n-shot"]) !== null))
    return "evaluation";
  if (file === "upcycling.json") return "receipt";
  if (asObject(object["best"]) !== null || /^plan\b/i.test(file)) return "plan";
  return null;
}

export class Artifacts {
  readonly #folder: string;
  readonly #known = new Map<string, Known>();
  /** Stamps of files that are nothing to show, so that they are not read again. */
  readonly #ignored = new Map<string, string>();

  constructor(folder: string) {
    this.#folder = folder;
  }

  /** Looks for files again; those that did not change are not read. */
  list(): ArtifactSummary[] {
    const seen = new Set<string>();
    for (const { folder, file, name } of this.#candidates()) {
      const stat = statInside(folder, file);
      if (stat === null || stat.size > maxBytes || stat.size === 0) continue;
      const stamp = `${stat.ino} ${stat.size} ${stat.mtimeMs}`;
      seen.add(name);
      if (this.#known.get(name)?.stamp === stamp || this.#ignored.get(name) === stamp) continue;
      const json = parseJson(readInside(folder, file, maxBytes) ?? "");
      const kind = kindOf(json, file);
      const object = asObject(json);
      if (kind === null || object === null) {
        this.#known.delete(name);
        this.#ignored.set(name, stamp);
        continue;
      }
      const id = createHash("sha256").update(name).digest("hex").slice(0, 12);
      this.#known.set(name, { folder, file, stamp, json: new WeakRef(object), summary: { id, kind, name } });
    }
    for (const name of this.#known.keys()) if (!seen.has(name)) this.#known.delete(name);
    return [...this.#known.values()]
      .map(({ summary }) => summary)
      .toSorted((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }));
  }

  #candidates(): { folder: string; file: string; name: string }[] {
    const { files, folders } = listInside(this.#folder);
    const here = files.filter(isCandidate).map((file) => ({ folder: this.#folder, file, name: file }));
    const below = folders
      .filter((name) => !name.startsWith(".") && !otherFolders.has(name))
      .slice(0, 50)
      .flatMap((name) => {
        const folder = join(this.#folder, name);
        const inner = listInside(folder).files;
        // A run of its own below this one shows its files itself.
        if (inner.includes("metrics.jsonl") || inner.includes("config.json")) return [];
        return inner.filter(isCandidate).map((file) => ({ folder, file, name: `${name}/${file}` }));
      });
    return [...here, ...below].slice(0, maxFiles);
  }

  /** What a file holds, or null for an id that is none of `list`. */
  read(id: string): ArtifactAnswer | null {
    const known = [...this.#known.values()].find(({ summary }) => summary.id === id);
    if (known === undefined) return null;
    const { summary, folder, file } = known;
    const json = known.json.deref() ?? asObject(parseJson(readInside(folder, file, maxBytes) ?? ""));
    if (json === null) return null;
    switch (summary.kind) {
      case "trace":
        return traceAnswer(summary.name, json);
      case "evaluation":
        return evaluationAnswer(summary.name, json);
      case "plan":
      case "receipt":
        return { kind: summary.kind, name: summary.name, document: boundedJson(json) };
      default:
        return summary.kind satisfies never;
    }
  }
}

function isCandidate(file: string): boolean {
  return file.endsWith(".json") && !file.startsWith(".") && isPlainName(file) && !otherFiles.has(file) && !file.endsWith(".index.json");
}

/** Prompts of a run's configuration. */
export function promptsOf(config: unknown): string[] {
  return asArray(asObject(asObject(config)?.["samples"])?.["prompts"])
    .slice(0, 64)
    .map((prompt) => asText(prompt) ?? "");
}
