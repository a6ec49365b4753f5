/** `moe dashboard`: runs in a browser, and a served model beside them. */
import { Option, type Command } from "commander";
import { startDashboard } from "../../dashboard/index.ts";
import { defaultDashboardPort, port } from "../options.ts";
import { Output } from "../output.ts";

interface DashboardFlags {
  readonly port: number;
  readonly host: string;
  readonly server?: string;
  readonly apiKey?: string;
  readonly json?: boolean;
}

export function addDashboard(program: Command): void {
  program
    .command("dashboard")
    .description("look at runs in a browser while they train and afterwards, or at a served model")
    .argument("[folder]", "folder of a run, or a folder of runs", "runs")
    .option("--port <n>", "port; 0: any that is free", port, defaultDashboardPort)
    .option("--host <address>", "address to listen on; others than the machine itself reach it only at another than this", "127.0.0.1")
    .option("--server <url>", "a server of moe serve to watch: expert load, queue, latencies")
    .addOption(new Option("--api-key <key>", "of that server").env("MOE_API_KEY"))
    .option("--json", "print the address as one JSON object")
    .action(run);
}

async function run(folder: string, flags: DashboardFlags): Promise<void> {
  const output = new Output({ json: flags.json === true });
  const stopped = new Promise<void>((done) => {
    process.once("SIGINT", () => done()).once("SIGTERM", () => done());
  });
  const dashboard = await startDashboard({
    folder,
    host: flags.host,
    port: flags.port,
    server: flags.server ?? null,
    apiKey: flags.apiKey ?? null,
    onNote: (note) => output.log(note),
  });
  output.result({ url: dashboard.url, folder }, `dashboard of ${folder}: ${dashboard.url} (Ctrl+C ends it)`);
  await stopped;
  await dashboard.close();
}
