/**
 * Files of a data set from the Hub, or a server of the same interface: those that the caller chooses by name, of the main branch, else
 * of the branch where the Hub keeps every public set converted to Parquet. Environment as for models: `HF_ENDPOINT`, and
 * `HF_TOKEN`, which goes to that server only.
 */
import { mkdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { HUB_URL, HubApiError, listFiles, type ListFileEntry } from "@huggingface/hub";
import { downloadFile } from "../checkpoint/download.ts";
import { fileError, MoeError } from "../util/errors.ts";

/** More than any of these sets has. */
const maxEntries = 20_000;
const revisions = ["main", "refs/convert/parquet"] as const;

/** Downloads the chosen files into `folder` under their own names. Throws `file` for no such set, `communication` for no answer. */
export async function fetchDataset(id: string, folder: string, choose: (path: string) => boolean): Promise<void> {
  const endpoint = (process.env["HF_ENDPOINT"] ?? HUB_URL).replace(/\/+$/, "");
  if (!URL.canParse(endpoint)) throw new MoeError("usage", `expected HF_ENDPOINT to be an address, got ${JSON.stringify(endpoint)}`);
  for (const revision of revisions) {
    const chosen = (await listing(id, endpoint, revision)).filter(({ path }) => choose(path));
    for (const entry of chosen) await fetchFile(id, endpoint, revision, folder, entry);
    if (chosen.length > 0) return;
  }
}

function authorized(endpoint: string): (url: string, init: RequestInit) => Promise<Response> {
  const token = process.env["HF_TOKEN"] ?? "";
  return (url, init) => {
    const headers = new Headers(init.headers);
    if (token !== "" && new URL(url).origin === new URL(endpoint).origin) headers.set("authorization", `Bearer ${token}`);
    return fetch(url, { ...init, headers });
  };
}

async function listing(id: string, endpoint: string, revision: string): Promise<readonly ListFileEntry[]> {
  const send = authorized(endpoint);
  const files: ListFileEntry[] = [];
  try {
    const list = listFiles({
      repo: { type: "dataset", name: id },
      revision,
      hubUrl: endpoint,
      recursive: true,
      fetch: (input, init = {}) =>
        send(input instanceof Request ? input.url : String(input), { ...init, signal: AbortSignal.timeout(60_000) }),
    });
    for await (const entry of list) {
      if (files.length === maxEntries) throw fileError(id, `a data set of at most ${maxEntries} files`, "more");
      // Names come from a stranger: nothing that could leave the folder.
      if (entry.type === "file" && /^[\w.-]+(\/[\w.-]+)*$/.test(entry.path) && !entry.path.split("/").some((part) => /^\.+$/.test(part)))
        files.push(entry);
    }
  } catch (error) {
    if (error instanceof MoeError) throw error;
    const status = error instanceof HubApiError ? error.statusCode : 0;
    // Not every set has the converted branch.
    if (status === 404 && revision !== "main") return [];
    const reason = status === 0 ? "no answer" : `status ${status}`;
    const advice = "check HF_ENDPOINT and HF_TOKEN, or give the files with --data <folder>";
    throw new MoeError("communication", `${id}: expected a data set from ${endpoint}, got ${reason}; ${advice}`, { cause: error });
  }
  return files;
}

async function fetchFile(
  id: string,
  endpoint: string,
  revision: string,
  folder: string,
  { path, size, lfs, oid }: ListFileEntry,
): Promise<void> {
  const target = join(folder, path);
  mkdirSync(dirname(target), { recursive: true });
  const names = path.split("/").map(encodeURIComponent).join("/");
  await downloadFile(
    {
      url: `${endpoint}/datasets/${id}/resolve/${encodeURIComponent(revision)}/${names}`,
      target,
      numBytes: lfs?.size ?? size,
      digest: { algorithm: lfs === undefined ? "git" : "sha256", hex: lfs?.oid ?? oid ?? "" },
    },
    { fetch: authorized(endpoint), maxRetries: 5, retryDelayMs: 500, silenceMs: 60_000 },
  );
}
