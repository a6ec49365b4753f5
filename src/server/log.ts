/** Lines about requests on standard error: for people, or one JSON object each. Never what a request or an answer says. */

export interface LogEntry {
  readonly level: "info" | "warn" | "error";
  readonly message: string;
  readonly [field: string]: string | number | boolean | null;
}
export interface ServerLog {
  write(entry: LogEntry): void;
}

/** A log that hands lines to `write`. */
export function makeLog(write: (line: string) => void, { json }: { readonly json: boolean }): ServerLog {
  return {
    write: (entry) => {
      if (json) write(JSON.stringify({ time: new Date().toISOString(), ...entry }));
      else {
        const { level, message, ...fields } = entry;
        const rest = Object.entries(fields).map(([key, value]) => `${key} ${value}`);
        write([level === "info" ? message : `${level}: ${message}`, ...rest].join(", "));
      }
    },
  };
}
