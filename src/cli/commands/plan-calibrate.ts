/** `moe plan calibrate`: fits a cluster's efficiency to measured step times and writes the cluster file. */
import { readFileSync } from "node:fs";
import { Option, type Command } from "commander";
import type { EfficiencyConfig } from "../../config/cluster.ts";
import { calibrateCluster, parseMeasurements, softwarePresets, type CalibrationReport, type SoftwareName } from "../../plan/index.ts";
import type { Recompute } from "../../plan/index.ts";
import { systemError, writeFileAtomically } from "../../util/files.ts";
import { formatTable, Output } from "../output.ts";
import { readCluster } from "../plan-inputs.ts";

interface CalibrateFlags {
  readonly cluster: string;
  readonly out: string;
  readonly software: SoftwareName;
  readonly recompute: Recompute;
  readonly json?: boolean;
}

/** Adds `calibrate` to the command `plan`. */
export function addCalibrate(plan: Command): void {
  plan
    .command("calibrate")
    .description("fit a cluster's efficiency to measured step times (docs/planner-calibration.md says the columns)")
    .argument("<measurements>", "CSV file, a row a measured run")
    .requiredOption("--cluster <name>", "cluster file or preset that the runs were on")
    .requiredOption("--out <file>", "where the cluster file with fitted constants goes")
    .addOption(new Option("--software <name>", "what ran").choices(Object.keys(softwarePresets)).default("megatron" satisfies SoftwareName))
    .addOption(
      new Option("--recompute <how>", "recomputation of rows that do not say").choices(["none", "selective", "full"]).default("none"),
    )
    .option("--json", "print one JSON object")
    .action(calibrate);
}

function calibrate(path: string, flags: CalibrateFlags): void {
  const cluster = readCluster(flags.cluster);
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch (error) {
    throw systemError(path, "measurements (CSV)", error);
  }
  const { cluster: fitted, ...report } = calibrateCluster(parseMeasurements(text, path), {
    cluster,
    software: softwarePresets[flags.software],
    recompute: flags.recompute,
  });
  writeFileAtomically(flags.out, `${JSON.stringify(fitted, null, 2)}\n`);
  const result = { ...report, efficiency: fitted.efficiency, file: flags.out };
  new Output({ json: flags.json === true }).result(result, describe(report, cluster.efficiency, fitted.efficiency, flags.out));
}

function describe(report: Omit<CalibrationReport, "cluster">, before: EfficiencyConfig, after: EfficiencyConfig, path: string): string {
  const percent = (value: number): string => `${(100 * value).toFixed(1)}%`;
  const constants = report.fitted.map((key) => [key, before[key].toPrecision(3), after[key].toPrecision(3)]);
  const worst = report.worst.map(({ line, measuredSeconds, predictedSeconds }) => [
    `line ${line}`,
    `${measuredSeconds.toPrecision(4)} s measured`,
    `${predictedSeconds.toPrecision(4)} s predicted`,
    percent(predictedSeconds / measuredSeconds - 1),
  ]);
  const held =
    report.heldOutError === null ? "too few rows to hold some out" : `${percent(report.heldOutError)} on held-out rows (five folds)`;
  return [
    `${report.numRows} rows: ${percent(report.meanErrorBefore)} off before, ${percent(report.meanError)} after, ${held}`,
    "",
    formatTable([["constant", "before", "after"], ...constants]),
    "",
    `worst rows\n${formatTable(worst)}`,
    "",
    `wrote ${path}`,
  ].join("\n");
}
