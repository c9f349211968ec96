import type { EngineName } from "../host/engines.part.ts";
import { quote } from "../sys/error.ts";
import { EXIT } from "../sys/exit.ts";
import type { Sys } from "../sys/sys.ts";
import { examine } from "./doctor.part.ts";
import { type Parsed, UsageError } from "./options.ts";
import { machineOf } from "./plan.ts";

/** The names that people give to engines. */
const ENGINES: Readonly<Record<string, EngineName>> = {
  docker: "docker",
  containerd: "containerd",
  crio: "crio",
  "cri-o": "crio",
  podman: "podman",
};

/** `sluice doctor`: what is wrong with this machine, or the tree at `--root`, why it matters and how to put it right. */
export function doctorCommand(sys: Sys, parsed: Parsed): number {
  if (parsed.positional.length > 0) throw new UsageError("it takes no arguments");
  const [root, named] = [parsed.one("root"), parsed.one("engine")];
  const engine = named === undefined ? undefined : Object.hasOwn(ENGINES, named) ? ENGINES[named] : undefined;
  if (named !== undefined && engine === undefined) {
    throw new UsageError(`--engine ${quote(named)} is none of docker, containerd, cri-o, podman`);
  }
  const options = {
    json: parsed.flag("json"),
    ...(root === undefined ? {} : { root }),
    ...(engine === undefined ? {} : { engine }),
  };
  return examine(sys, options, () => machineOf(sys, parsed)) ? EXIT.done : EXIT.failed;
}
