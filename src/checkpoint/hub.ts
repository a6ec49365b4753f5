/**
 * Models from the Hugging Face Hub, or a server of the same interface: which files of a repository make a model, and their
 * way into a folder (download.ts). All files are of one commit, found out first, also when the branch moves meanwhile.
 *
 * Chosen are the safetensors that the index names (or the single file), else a GGUF file, with configuration and tokenizer;
 * never pickles or code. Names come from a stranger: only plain names at the top of the repository are taken. Environment:
 * `HF_ENDPOINT` (the server), `HF_TOKEN` (sent to that server only, not where it redirects to).
 */
import * as fs from "node:fs";
import * as path from "node:path";
import { HUB_URL, HubApiError, listFiles, modelInfo, type ListFileEntry } from "@huggingface/hub";
import { fileError, MoeError } from "../util/errors.ts";
import { systemError } from "../util/files.ts";
import { downloadFile, type Digest, type DownloadOptions, type DownloadState } from "./download.ts";
import { INDEX_FILE, SINGLE_FILE } from "./model-weights.ts";

export interface PulledFile {
  readonly name: string;
  readonly bytes: number;
  readonly state: DownloadState;
}

export interface PullOptions {
  /** Where to put the files. Default: `models/<owner>--<name>`. */
  readonly folder?: string;
  /** Branch, tag or commit. Default `main`. */
  readonly revision?: string;
  /** GGUF file to take, for repositories with several of them. */
  readonly file?: string;
  /** Default: `HF_ENDPOINT`, else the Hub. */
  readonly endpoint?: string;
  /** Default: `HF_TOKEN`, else none. */
  readonly token?: string;
  /** After each file. */
  readonly onFile?: (file: PulledFile) => void;
  /** While a file arrives. */
  readonly onProgress?: (name: string, done: number, total: number) => void;
  /** Attempts after failures in a row. Default 5, the first after `retryDelayMs` (500), then doubling. */
  readonly maxRetries?: number;
  readonly retryDelayMs?: number;
  /** Silence after which a connection counts as lost. Default 60 s. */
  readonly silenceMs?: number;
}

export interface PullResult {
  readonly id: string;
  readonly revision: string;
  /** The commit that all files are of. */
  readonly commit: string;
  readonly folder: string;
  readonly files: readonly PulledFile[];
  readonly numBytes: number;
}

/** What every request needs. */
interface Hub {
  readonly id: string;
  readonly endpoint: string;
  readonly fetch: (url: string, init: RequestInit) => Promise<Response>;
  readonly retries: Pick<DownloadOptions, "maxRetries" | "retryDelayMs" | "silenceMs">;
}

/**
 * Downloads a model; what is in the folder already, whole or in part, is not fetched again. Errors: `usage` (the id, or
 * several GGUF files and no choice), `file` (no such repository, revision or model in it; other content than announced),
 * `communication` (connection, access), `resource` (disk).
 *
 * ```ts
 * const { folder } = await pullModel("HuggingFaceTB/SmolLM2-135M", { onFile: ({ name }) => console.log(name) });
 * ```
 */
export async function pullModel(id: string, options: PullOptions = {}): Promise<PullResult> {
  if (!/^[A-Za-z0-9][\w.-]*\/[A-Za-z0-9][\w.-]*$/.test(id) || id.includes("..")) {
    throw new MoeError("usage", `pull: expected a model as owner/name, got ${JSON.stringify(id)}`);
  }
  const hub = connect(id, options);
  const revision = options.revision ?? "main";
  const commit = await asking(hub, revision, () => commitOf(hub, revision));
  const listed = await asking(hub, revision, () => listing(hub, commit));
  const folder = options.folder ?? path.join("models", id.replace("/", "--"));
  const files: PulledFile[] = [];
  const pull = async (entries: readonly ListFileEntry[]): Promise<void> => {
    requireSpace(folder, entries);
    for (const entry of entries) files.push(await pullFile(hub, commit, folder, entry, options));
  };
  const { small, weights } = chooseFiles(id, listed, options.file);
  makeFolder(folder);
  await pull(small);
  await pull(weights(folder));
  return { id, revision, commit, folder, files, numBytes: files.reduce((sum, { bytes }) => sum + bytes, 0) };
}

function connect(id: string, options: PullOptions): Hub {
  const endpoint = (options.endpoint ?? process.env["HF_ENDPOINT"] ?? HUB_URL).replace(/\/+$/, "");
  const token = options.token ?? process.env["HF_TOKEN"] ?? "";
  if (!URL.canParse(endpoint) || !/^https?:$/.test(new URL(endpoint).protocol)) {
    throw new MoeError("usage", `pull: expected HF_ENDPOINT to be an http or https address, got ${JSON.stringify(endpoint)}`);
  }
  const { origin } = new URL(endpoint);
  return {
    id,
    endpoint,
    fetch: (url, init) => {
      const headers = new Headers(init.headers);
      // The next page of a list may be anywhere; the token is for the endpoint alone. fetch drops it on redirects elsewhere.
      if (token !== "" && new URL(url).origin === origin) headers.set("authorization", `Bearer ${token}`);
      return fetch(url, { ...init, headers });
    },
    retries: { maxRetries: options.maxRetries ?? 5, retryDelayMs: options.retryDelayMs ?? 500, silenceMs: options.silenceMs ?? 60_000 },
  };
}

/** The client of the Hub calls with strings and takes nothing but a function of fetch's type. */
function clientFetch(hub: Hub): typeof fetch {
  return async (input, init = {}) =>
    hub.fetch(input instanceof Request ? input.url : String(input), { ...init, signal: AbortSignal.timeout(hub.retries.silenceMs) });
}

async function commitOf(hub: Hub, revision: string): Promise<string> {
  const info = await modelInfo({ name: hub.id, revision, hubUrl: hub.endpoint, fetch: clientFetch(hub), additionalFields: ["sha"] });
  if (!/^[0-9a-f]{40,64}$/.test(info.sha)) throw fileError(hub.id, "a commit from the server", JSON.stringify(info.sha));
  return info.sha;
}

/** More than any model has; a list without end is an error. */
const maxEntries = 20_000;

async function listing(hub: Hub, commit: string): Promise<ListFileEntry[]> {
  const entries: ListFileEntry[] = [];
  for await (const entry of listFiles({ repo: hub.id, revision: commit, hubUrl: hub.endpoint, fetch: clientFetch(hub) })) {
    if (entries.length === maxEntries) throw fileError(hub.id, `a list of at most ${maxEntries} files`, "more");
    if (entry.type === "file") entries.push(checkedEntry(hub.id, entry));
  }
  return entries;
}

/** Plain names only. The list was asked for the top of the repository, so a separator is hostile or broken. */
function checkedEntry(id: string, entry: ListFileEntry): ListFileEntry {
  const name: unknown = entry.path;
  if (typeof name !== "string" || name.startsWith("..") || !/^[\w.@+ ()-]{1,200}$/.test(name) || name.endsWith(".")) {
    throw fileError(id, "plain file names at the top of the repository", JSON.stringify(name));
  }
  if (!Number.isSafeInteger(entry.size) || entry.size < 0) throw fileError(id, `the size of ${name}`, JSON.stringify(entry.size));
  return entry;
}

/** Asks the API, again after failures that may pass; its refusals in our words. */
async function asking<T>(hub: Hub, revision: string, question: () => Promise<T>): Promise<T> {
  for (let failures = 0; ; failures++) {
    try {
      return await question();
    } catch (error) {
      if (error instanceof MoeError) throw error;
      const status = error instanceof HubApiError ? error.statusCode : 0;
      if (status !== 0 && status !== 429 && status < 500) throw refusal(hub, revision, status, error);
      if (failures >= hub.retries.maxRetries) {
        const reason =
          error instanceof Error && error.cause instanceof Error
            ? error.cause.message
            : error instanceof Error
              ? error.message
              : String(error);
        throw new MoeError("communication", `${hub.id}: expected an answer from ${hub.endpoint}, but ${reason}; is HF_ENDPOINT right?`, {
          cause: error,
        });
      }
      await new Promise((done) => setTimeout(done, Math.min(hub.retries.retryDelayMs * 2 ** failures, 30_000)));
    }
  }
}

function refusal({ id, endpoint }: Hub, revision: string, status: number, cause: unknown): MoeError {
  const what = `${id} at revision ${revision}`;
  const gated = `if it is private or gated, accept its conditions at ${endpoint}/${id} and set HF_TOKEN to a token of that account`;
  if (status === 401)
    return new MoeError("communication", `${what}: expected to be let in, got 401: no such model, or not for everyone; ${gated}`, {
      cause,
    });
  if (status === 403)
    return new MoeError("communication", `${what}: expected to be let in, got 403: not for this account; ${gated}`, { cause });
  if (status === 404) return fileError(what, `a model on ${endpoint}`, "404: no such model or revision", cause);
  return new MoeError("communication", `${what}: expected a list of files, but ${endpoint} answered ${status}`, { cause });
}

/** Configuration, tokenizer, template and licence, none of which can run. */
const isSmall = (name: string): boolean =>
  (/\.(json|jinja)$/.test(name) && !name.endsWith(".index.json")) ||
  /^(tokenizer\.model|merges\.txt|vocab\.txt|LICENSE.*|NOTICE.*)$/.test(name);

interface Choice {
  readonly small: readonly ListFileEntry[];
  /** Decided when the small files are there: the index says which shards belong to the model. */
  readonly weights: (folder: string) => readonly ListFileEntry[];
}

function chooseFiles(id: string, listed: readonly ListFileEntry[], file: string | undefined): Choice {
  const byName = new Map(listed.map((entry) => [entry.path, entry]));
  const small = listed.filter(({ path: name }) => isSmall(name));
  const [single, index] = [byName.get(SINGLE_FILE), byName.get(INDEX_FILE)];
  if (file === undefined && single !== undefined) return { small, weights: () => [single] };
  if (file === undefined && index !== undefined)
    return { small: [...small, index], weights: (folder) => shards(id, path.join(folder, INDEX_FILE), byName) };
  const gguf = chooseGguf(id, listed, file);
  return { small, weights: () => [gguf] };
}

function chooseGguf(id: string, listed: readonly ListFileEntry[], file: string | undefined): ListFileEntry {
  const files = listed.filter(({ path: name }) => name.endsWith(".gguf"));
  const names = files.map(({ path: name }) => name).join(", ");
  if (file !== undefined) {
    const named = files.find(({ path: name }) => name === file);
    if (named === undefined)
      throw new MoeError("usage", `${id}: expected --file to name a GGUF file of it, got ${file}; it has ${names || "none"}`);
    return named;
  }
  const [first, ...more] = files;
  if (first === undefined) {
    const others = listed.map(({ path: name }) => name).filter((name) => !isSmall(name));
    throw fileError(
      id,
      `${SINGLE_FILE}, ${INDEX_FILE} or a GGUF file`,
      `${others.slice(0, 8).join(", ") || "no weights"} (pickles are never downloaded)`,
    );
  }
  if (more.length > 0) throw new MoeError("usage", `${id}: it has several GGUF files; name one with --file: ${names}`);
  return first;
}

/** The files that the index promises. */
function shards(id: string, indexPath: string, byName: ReadonlyMap<string, ListFileEntry>): ListFileEntry[] {
  let map: unknown;
  try {
    map = (JSON.parse(fs.readFileSync(indexPath, "utf8")) as { weight_map?: unknown } | null)?.weight_map;
  } catch (error) {
    throw fileError(indexPath, "JSON", error instanceof Error ? error.message : String(error), error);
  }
  if (typeof map !== "object" || map === null) throw fileError(indexPath, "a weight_map (file name by tensor name)", "none");
  return [...new Set<unknown>(Object.values(map))].map((name) => {
    const entry = typeof name === "string" && name.endsWith(".safetensors") ? byName.get(name) : undefined;
    if (entry === undefined) throw fileError(indexPath, `names of .safetensors files of ${id}`, JSON.stringify(name));
    return entry;
  });
}

function makeFolder(folder: string): void {
  try {
    fs.mkdirSync(folder, { recursive: true });
  } catch (error) {
    throw systemError(folder, "a folder to download to", error);
  }
}

/** Better now than after hours. What is there already counts as free, since it is replaced or kept. */
function requireSpace(folder: string, entries: readonly ListFileEntry[]): void {
  const needed = entries.reduce((sum, { size }) => sum + size, 0);
  const present = fs
    .readdirSync(folder)
    .reduce((sum, name) => sum + (fs.statSync(path.join(folder, name), { throwIfNoEntry: false })?.size ?? 0), 0);
  const { bavail, bsize } = fs.statfsSync(folder);
  if (needed > bavail * bsize + present) {
    throw new MoeError("resource", `${folder}: expected room for ${needed} bytes, got ${bavail * bsize} free on the disk`);
  }
}

async function pullFile(hub: Hub, commit: string, folder: string, entry: ListFileEntry, options: PullOptions): Promise<PulledFile> {
  const { path: name, size, lfs, oid } = entry;
  const hex = lfs?.oid ?? oid ?? "";
  const digest: Digest = { algorithm: lfs === undefined ? "git" : "sha256", hex };
  if (!(lfs === undefined ? /^[0-9a-f]{40}$/ : /^[0-9a-f]{64}$/).test(hex))
    throw fileError(hub.id, `a digest of ${name}`, JSON.stringify(hex));
  const url = `${hub.endpoint}/${hub.id}/resolve/${commit}/${encodeURIComponent(name)}`;
  // A gated repository shows its list to everyone and refuses only the files.
  const fetchFile = async (address: string, init: RequestInit): Promise<Response> => {
    const response = await hub.fetch(address, init);
    if (response.status === 401 || response.status === 403)
      throw refusal(hub, `${options.revision ?? "main"}, file ${name}`, response.status, undefined);
    return response;
  };
  const state = await downloadFile(
    { url, target: path.join(folder, name), numBytes: lfs?.size ?? size, digest },
    { ...hub.retries, fetch: fetchFile, onBytes: (done) => options.onProgress?.(name, done, size) },
  );
  const file: PulledFile = { name, bytes: lfs?.size ?? size, state };
  options.onFile?.(file);
  return file;
}
