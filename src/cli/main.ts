#!/usr/bin/env node
import { runCommand } from "./program.ts";

// A reader that has seen enough (`| head`) ends the command quietly; one that no longer watches the log does not end a run.
process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code !== "EPIPE") throw error;
  process.exit(1);
});
process.stderr.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code !== "EPIPE") throw error;
});

process.exitCode = await runCommand(process.argv.slice(2));
