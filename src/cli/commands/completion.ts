/** `moe completion`: a script that completes verbs and options in a shell. */
import { Argument, type Command } from "commander";
import { completionScript, shells, type Shell } from "../completion.ts";

export function addCompletion(program: Command): void {
  program
    .command("completion")
    .description("a script that completes moe's verbs and options in a shell")
    .addArgument(new Argument("<shell>", "the shell").choices(shells))
    .action(async (shell: Shell) => {
      // The program at hand may be this verb alone.
      const { createProgram } = await import("../program.ts");
      process.stdout.write(completionScript(shell, await createProgram()));
    });
}
