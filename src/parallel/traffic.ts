/** Counters of what a communicator did, and the table in which they are printed. */
import { operationNames, type AxisTraffic, type OperationName, type Traffic, type TrafficTable } from "./communicator.ts";

export type MutableTraffic = Record<OperationName, Traffic>;

/** Zeros. */
export function emptyTraffic(): MutableTraffic {
  const none = (): Traffic => ({ calls: 0, bytes: 0, sentBytes: 0, receivedBytes: 0, seconds: 0, flightSeconds: 0 });
  return Object.fromEntries(operationNames.map((name) => [name, none()])) as MutableTraffic;
}

/** What happened since `before`, a copy taken by `copyTraffic`. */
export function trafficSince(now: TrafficTable, before: TrafficTable): TrafficTable {
  const result = emptyTraffic();
  for (const name of operationNames) {
    for (const key of Object.keys(result[name]) as (keyof Traffic)[]) result[name][key] = now[name][key] - before[name][key];
  }
  return result;
}
export function copyTraffic(traffic: TrafficTable): TrafficTable {
  return trafficSince(traffic, emptyTraffic());
}

/** Sum over communicators or ranks. */
export function addTraffic(tables: readonly TrafficTable[]): TrafficTable {
  const result = emptyTraffic();
  for (const table of tables) {
    for (const name of operationNames) {
      for (const key of Object.keys(result[name]) as (keyof Traffic)[]) result[name][key] += table[name][key];
    }
  }
  return result;
}

/** Axes of several communicators or ranks, those of one name added up, in the order in which names first come. */
export function mergeAxes(lists: readonly (readonly AxisTraffic[])[]): AxisTraffic[] {
  const all = lists.flat();
  const names = [...new Set(all.map(({ name }) => name))];
  return names.map((name) => ({ name, traffic: addTraffic(all.filter((axis) => axis.name === name).map(({ traffic }) => traffic)) }));
}

/**
 * Lines of a table, one for each axis and operation that occurred: calls, bytes put in, bytes sent, seconds inside calls, seconds in
 * flight.
 * @example
 * trafficTable([{ name: communicator.name, traffic: communicator.traffic }]).join("\n");
 */
export function trafficTable(rows: readonly AxisTraffic[]): string[] {
  const header = ["axis", "operation", "calls", "bytes", "sent", "seconds", "in flight"];
  const body = rows.flatMap(({ name, traffic }) =>
    operationNames
      .filter((operation) => traffic[operation].calls > 0)
      .map((operation) => {
        const { calls, bytes, sentBytes, seconds, flightSeconds } = traffic[operation];
        return [name, operation, String(calls), String(bytes), String(sentBytes), seconds.toFixed(4), flightSeconds.toFixed(4)];
      }),
  );
  const cells = [header, ...body];
  const widths = header.map((_, column) => Math.max(...cells.map((row) => row[column]?.length ?? 0)));
  return cells.map((row) =>
    row
      .map((cell, column) => (column < 2 ? cell.padEnd(widths[column] ?? 0) : cell.padStart(widths[column] ?? 0)))
      .join("  ")
      .trimEnd(),
  );
}
