import { EXIT } from "../sys/enter.ts";
import type { Sys } from "../sys/sys.ts";
import { showGpus } from "./gpus.part.ts";
import { type Parsed, UsageError } from "./options.ts";

/** `sluice gpus`: what this machine, or the tree at `--root`, has. */
export function gpusCommand(sys: Sys, parsed: Parsed): number {
  if (parsed.positional.length > 0) throw new UsageError("it takes no arguments");
  const root = parsed.one("root");
  showGpus(sys, root === undefined ? sys : sys.under(root), parsed.flag("json"));
  return EXIT.done;
}
