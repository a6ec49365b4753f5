/** Starting and stopping a dashboard. */
import type { AddressInfo } from "node:net";
import { systemError } from "../util/files.ts";
import { MoeError } from "../util/errors.ts";
import { createDashboardApp } from "./app.ts";
import { Catalog } from "./catalog.ts";
import { Hub } from "./hub.ts";
import { loadPage, type PageFile } from "./page-files.ts";
import { WatchedServer } from "./watched-server.ts";

export interface DashboardOptions {
  /** The folder of a run, or a folder of runs. */
  readonly folder: string;
  readonly host: string;
  /** 0: any that is free. */
  readonly port: number;
  /** Address of a served model to watch. */
  readonly server?: string | null;
  readonly apiKey?: string | null;
  readonly onNote?: (note: string) => void;
  /** The page's files; default: those of this package, built where they are not. */
  readonly page?: ReadonlyMap<string, PageFile>;
}
export interface Dashboard {
  readonly url: string;
  close(): Promise<void>;
}

const loopback = new Set(["127.0.0.1", "::1", "localhost"]);

/**
 * Serves the dashboard until it is closed. Throws `file` for a folder that is none, `resource` for a port that is taken or a page that cannot
 * be built, `usage` for an address of a server that is none.
 *
 * ```ts
 * const dashboard = await startDashboard({ folder: "runs", host: "127.0.0.1", port: 7007 });
 * ```
 */
export async function startDashboard(options: DashboardOptions): Promise<Dashboard> {
  const { folder, host, port, server: address = null, apiKey = null } = options;
  const server = address === null ? null : new WatchedServer({ url: address, apiKey });
  const catalog = new Catalog(folder);
  const page = options.page ?? loadPage(undefined, options.onNote);
  const hub = new Hub(catalog);
  // Reached from elsewhere it is called by names that are not known here.
  const hosts = loopback.has(host) ? new Set(["127.0.0.1", "localhost", "[::1]", "::1"]) : null;
  const app = createDashboardApp({ catalog, hub, page, server, hosts });
  try {
    await app.listen({ host, port });
  } catch (error) {
    await app.close();
    if ((error as NodeJS.ErrnoException).code === "EADDRINUSE")
      throw new MoeError("resource", `port ${port} of ${host} is taken; --port 0 takes one that is free`, { cause: error });
    throw systemError(`${host}:${port}`, "an address to listen on", error);
  }
  server?.start(
    () => hub.numListeners > 0,
    (answer) => hub.send("server", answer),
  );
  const { port: actual } = app.server.address() as AddressInfo;
  return {
    url: `http://${host.includes(":") ? `[${host}]` : host}:${actual}/`,
    close: async () => {
      server?.close();
      hub.close();
      await app.close();
    },
  };
}
