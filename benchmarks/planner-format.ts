/** How the pages of the planner's scores write numbers and tables. */
import type { EfficiencyConfig } from "../src/config/cluster.ts";

export type ConstantMeanings = Readonly<Record<keyof EfficiencyConfig, readonly [unit: string, meaning: string]>>;

export function percent(value: number): string {
  return `${(100 * value).toFixed(1).replace(/^-(0\.0)$/, "$1")}%`;
}
export function table(head: readonly string[], body: readonly (readonly string[])[]): string {
  return [head, head.map(() => "---"), ...body].map((cells) => `| ${cells.join(" | ")} |`).join("\n");
}

/** A constant of a cluster's efficiency. */
export function constantText(key: keyof EfficiencyConfig, { [key]: value }: EfficiencyConfig): string {
  if (value === 0) return "0";
  return key.endsWith("Seconds") ? value.toExponential(1) : value.toFixed(2);
}
