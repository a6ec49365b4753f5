/** A server on this machine that answers as the Hugging Face Hub does for one model, and misbehaves on request. */
import { createHash } from "node:crypto";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";

/** Of the one revision that it has. */
export const commit = "0123456789abcdef0123456789abcdef01234567";
export const sha256 = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");
/** As git names the content of a file. */
export const gitOid = (bytes: Uint8Array): string => createHash("sha1").update(`blob ${bytes.length}\0`).update(bytes).digest("hex");
/** A file as the Hub lists it. */
export interface Entry {
  type: string;
  path: string;
  size: number;
  oid: string;
  lfs?: { oid: string; size: number; pointerSize: number };
}
/** What a file request is answered with instead of the file; undefined: the file. */
type Misbehaviour = (request: IncomingMessage, response: ServerResponse, name: string, attempt: number) => boolean;

/** A Hub with one model. */
export class FakeHub {
  readonly #id: string;
  readonly files = new Map<string, Uint8Array>();
  readonly requests: { url: string; range: string | undefined; authorization: string | undefined }[] = [];
  misbehave: Misbehaviour = () => false;
  changeList: (entries: Entry[]) => Entry[] = (entries) => entries;
  readonly #server: Server = createServer((request, response) => {
    this.#answer(request, response);
  });
  readonly #attempts = new Map<string, number>();
  endpoint = "";

  constructor(id = "acme/tiny") {
    this.#id = id;
  }

  async start(): Promise<void> {
    await new Promise<void>((done) => this.#server.listen(0, "127.0.0.1", done));
    this.endpoint = `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }
  async stop(): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((done) => this.#server.close(done));
  }
  downloads(): string[] {
    return this.requests
      .map(({ url }) => url)
      .filter((url) => url.includes("/resolve/"))
      .map((url) => decodeURIComponent(url.split("/").at(-1) ?? ""));
  }
  #answer(request: IncomingMessage, response: ServerResponse): void {
    const url = request.url ?? "";
    this.requests.push({ url, range: request.headers.range, authorization: request.headers.authorization });
    const files = `/${this.#id}/resolve/${commit}/`;
    const name = url.startsWith(files) ? decodeURIComponent(url.slice(files.length)) : "";
    const attempt = (this.#attempts.get(url) ?? 0) + 1;
    this.#attempts.set(url, attempt);
    if (this.misbehave(request, response, name, attempt)) return;
    const api = `/api/models/${this.#id}`;
    if (url.startsWith(`${api}/revision/main?`)) return json(response, { _id: "1", id: this.#id, sha: commit });
    if (url.startsWith(`${api}/tree/${commit}?`)) return json(response, this.changeList(this.#entries()));
    const bytes = this.files.get(name);
    if (bytes === undefined) {
      response.writeHead(404, { "x-error-code": "EntryNotFound" }).end();
      return;
    }
    const [, from] = /^bytes=(\d+)-$/.exec(request.headers.range ?? "") ?? [];
    const range = from === undefined ? {} : { "content-range": `bytes ${from}-${bytes.length - 1}/${bytes.length}` };
    response.writeHead(from === undefined ? 200 : 206, range).end(bytes.subarray(Number(from ?? 0)));
  }
  #entries(): Entry[] {
    return [...this.files].map(([path, bytes]) => ({
      type: "file",
      path,
      size: bytes.length,
      oid: gitOid(bytes),
      ...(path.endsWith(".safetensors") || path.endsWith(".gguf")
        ? { lfs: { oid: sha256(bytes), size: bytes.length, pointerSize: 130 } }
        : {}),
    }));
  }
}
function json(response: ServerResponse, value: unknown): void {
  response.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify(value));
}
