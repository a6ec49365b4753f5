/**
 * Completion scripts for bash, zsh and fish, made from the command itself: verbs, their options, the choices of an option, and files
 * everywhere else. The scripts are static: completing a word starts no `moe`.
 */
import type { Command } from "commander";

export const shells = ["bash", "zsh", "fish"] as const;
export type Shell = (typeof shells)[number];

interface Option {
  readonly flag: string;
  readonly description: string;
  /** It takes a value. */
  readonly takesValue: boolean;
  /** The values it takes, where they are few; otherwise a file, which is a guess. */
  readonly choices: readonly string[];
}
interface Verb {
  readonly name: string;
  readonly description: string;
  readonly options: readonly Option[];
}

/** The script for one shell. */
export function completionScript(shell: Shell, program: Command): string {
  const verbs = program.commands.map((command): Verb => {
    const options = command.options.map(({ long, description, required, optional, argChoices }) => ({
      flag: long ?? "",
      description,
      takesValue: required || optional,
      choices: argChoices ?? [],
    }));
    const help: Option = { flag: "--help", description: "display help for command", takesValue: false, choices: [] };
    return { name: command.name(), description: command.description(), options: [...options, help].filter(({ flag }) => flag !== "") };
  });
  switch (shell) {
    case "bash":
      return bash(verbs);
    case "zsh":
      return zsh(verbs);
    case "fish":
      return fish(verbs);
    default:
      return shell satisfies never;
  }
}

/** In single quotes, for a POSIX shell. */
function quoted(text: string): string {
  return `'${text.replaceAll("'", String.raw`'\''`)}'`;
}
/** The first sentence, on one line. */
function brief(text: string): string {
  return text.replaceAll(/\s+/g, " ");
}

function bash(verbs: readonly Verb[]): string {
  const flags = verbs.map(({ name, options }) => `    ${name}) flags=${quoted(options.map(({ flag }) => flag).join(" "))} ;;`);
  const values = verbs.flatMap(({ name, options }) =>
    options
      .filter(({ choices }) => choices.length > 0)
      .map(
        ({ flag, choices }) =>
          `    ${quoted(`${name} ${flag}`)}) COMPREPLY=($(compgen -W ${quoted(choices.join(" "))} -- "$word")); return ;;`,
      ),
  );
  return `# moe completion for bash: source this file, or put it where bash-completion looks.
_moe() {
  local word="\${COMP_WORDS[COMP_CWORD]}" verb="\${COMP_WORDS[1]}" before="\${COMP_WORDS[COMP_CWORD-1]}" flags=
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W ${quoted([...verbs.map(({ name }) => name), "--help", "--version"].join(" "))} -- "$word"))
    return
  fi
  case "$verb $before" in
${values.join("\n")}
  esac
  case "$verb" in
${flags.join("\n")}
  esac
  case "$word" in
    -*) COMPREPLY=($(compgen -W "$flags" -- "$word")) ;;
    *) compopt -o filenames 2>/dev/null; COMPREPLY=($(compgen -f -- "$word")) ;;
  esac
}
complete -F _moe moe
`;
}

function zsh(verbs: readonly Verb[]): string {
  // Within _arguments, brackets and colons separate.
  const plain = (text: string): string => brief(text).replaceAll(/[[\]:\\]/g, String.raw`\$&`);
  const argument = ({ flag, description, takesValue, choices }: Option): string => {
    const value = choices.length > 0 ? `:value:(${choices.join(" ")})` : ":value:_files";
    return `      ${quoted(`${flag}[${plain(description)}]${takesValue ? value : ""}`)}`;
  };
  const cases = verbs.map(
    ({ name, options }) => `    ${name}) _arguments ${[...options.map(argument), "      '*:file:_files'"].join(" \\\n").trim()} ;;`,
  );
  return `#compdef moe
# moe completion for zsh: a file named _moe in a folder of $fpath.
_moe() {
  if (( CURRENT == 2 )); then
    local -a verbs
    verbs=(
${verbs.map(({ name, description }) => `      ${quoted(`${name}:${brief(description)}`)}`).join("\n")}
    )
    _describe verb verbs
    return
  fi
  local verb=$words[2]
  shift words
  (( CURRENT-- ))
  case $verb in
${cases.join("\n")}
  esac
}
if [[ $funcstack[1] == _moe ]]; then _moe "$@"; else compdef _moe moe; fi
`;
}

function fish(verbs: readonly Verb[]): string {
  const escaped = (text: string): string =>
    `'${brief(text)
      .replaceAll("\\", "\\\\")
      .replaceAll("'", String.raw`\'`)}'`;
  const lines = verbs.flatMap(({ name, description, options }) => [
    `complete -c moe -n __fish_use_subcommand -f -a ${name} -d ${escaped(description)}`,
    ...options.map(({ flag, description: what, takesValue, choices }) => {
      const value = choices.length > 0 ? ` -x -a ${escaped(choices.join(" "))}` : takesValue ? " -r -F" : "";
      return `complete -c moe -n ${escaped(`__fish_seen_subcommand_from ${name}`)} -l ${flag.slice(2)}${value} -d ${escaped(what)}`;
    }),
  ]);
  return ["# moe completion for fish: a file in ~/.config/fish/completions/moe.fish.", ...lines, ""].join("\n");
}
