/** `--tp` and `--comm`: what the ranks of a cut model are. */
import { Option } from "commander";
import { chooseRanks, commNames, findLauncher, type CommName, type RanksChoice } from "../parallel/index.ts";
import { MoeError } from "../util/errors.ts";

export function commOption(): Option {
  return new Option("--comm <how>", "what connects the ranks: threads of this process, or MPI where mpirun started it")
    .choices(commNames)
    .default("auto");
}

/** Throws `usage` where that contradicts who started us. */
export function chooseTensorRanks({ tp, comm }: { readonly tp?: number; readonly comm: CommName }): RanksChoice {
  const launcher = findLauncher();
  if (comm !== "local" && tp !== undefined && launcher !== null && launcher.size !== tp)
    throw new MoeError("usage", `--tp ${tp}: ${launcher.command} started ${launcher.size} ranks; leave out --tp, or start as many`);
  return chooseRanks({ comm, ranks: tp });
}
