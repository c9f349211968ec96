import { openDefaultMachine } from "../plan/machine.ts";
import { EXIT } from "../sys/exit.ts";
import type { Sys } from "../sys/sys.ts";
import { showGpus } from "./gpus.part.ts";
import { type Parsed, UsageError } from "./options.ts";

/** `sluice gpus`: what this machine, or the tree at `--root`, has, and who has it. The settings do not matter to it. */
export function gpusCommand(sys: Sys, parsed: Parsed): number {
  if (parsed.positional.length > 0) throw new UsageError("it takes no arguments");
  const root = parsed.one("root");
  if (root === undefined) showGpus(sys, sys, parsed.flag("json"), openDefaultMachine(sys).stateDir);
  else showGpus(sys, sys.under(root), parsed.flag("json"));
  return EXIT.done;
}
