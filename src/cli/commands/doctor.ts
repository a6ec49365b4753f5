/** `moe doctor`: which engine runs here, why, and what to install for more. */
import type { Command } from "commander";
import { diagnose } from "../../backend/doctor.ts";
import { formatBytes, formatTable, Output } from "../output.ts";

export function addDoctor(program: Command): void {
  program
    .command("doctor")
    .description("which engine runs here and why; what to install for more")
    .option("--json", "print one JSON object")
    .action(async (options: { json?: boolean }) => {
      const report = await diagnose();
      const rows = Object.entries(report)
        .filter(([key]) => key !== "advice")
        .map(([key, value]) => [key, cell(key, value)]);
      const advice = report.advice.map((line) => `- ${line}`).join("\n");
      new Output({ json: options.json === true }).result(report, `${formatTable(rows)}${advice === "" ? "" : `\n\n${advice}`}`);
    });
}

function cell(key: string, value: unknown): string {
  if (Array.isArray(value))
    return value.length === 0 ? "none" : value.map((item) => (typeof item === "string" ? item : JSON.stringify(item))).join(", ");
  if (typeof value === "number" && key.endsWith("Bytes")) return formatBytes(value);
  if (typeof value === "object" && value !== null)
    return Object.entries(value)
      .map(([k, v]) => `${k} ${cell(k, v)}`)
      .join(", ");
  return value === null || value === undefined ? "none" : String(value);
}
