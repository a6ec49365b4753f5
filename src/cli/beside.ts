/** A dashboard in a process of its own beside a command that computes: pages are answered while a step runs, and end when the command does. */
import { spawn } from "node:child_process";
import { mkdirSync } from "node:fs";
import { systemError } from "../util/files.ts";
import type { Output } from "./output.ts";

/** Shows `folder` at `port` (0: any that is free) and says where; a dashboard that cannot start is told, and nothing else stops for it. */
export function dashboardBeside(output: Output, folder: string, port: number): Disposable {
  try {
    mkdirSync(folder, { recursive: true });
  } catch (error) {
    throw systemError(folder, "a folder for the run", error);
  }
  const command = process.argv[1] ?? "";
  const child = spawn(process.execPath, [...process.execArgv, command, "dashboard", folder, "--port", String(port), "--json"], {
    stdio: ["ignore", "pipe", "pipe"],
  });
  let [told, errors] = ["", ""];
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    told += text;
    const url = /"url":"([^"]+)"/.exec(told)?.[1];
    if (url === undefined) return;
    told = "";
    output.log(`dashboard: ${url}`);
  });
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    errors = (errors + text).slice(-2000);
  });
  child.on("error", (error) => output.log(`warning: no dashboard: ${error.message}`));
  child.on("exit", (code) => {
    if (code !== 0 && code !== null) output.log(`warning: no dashboard: ${errors.trim().replace(/^moe: /, "")}`);
  });
  // A command that has nothing more to do ends, whether somebody looks on or not.
  child.unref();
  for (const stream of [child.stdout, child.stderr]) (stream as unknown as { unref?: () => void }).unref?.();
  return {
    [Symbol.dispose](): void {
      child.kill("SIGTERM");
    },
  };
}
