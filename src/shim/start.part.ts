/** What only a call that starts a container needs; see runtime.ts. */

import { readBundle } from "../oci/bundle.ts";
import type { CommandLine } from "../oci/cmdline.ts";
import { inject } from "../plan/inject.ts";
import type { Machine } from "../plan/machine.ts";

/** Gives the container of a `create`, `run` or `restore` what it asks for. Whether that was anything. */
export function start(machine: Machine, line: CommandLine): boolean {
  const bundle = readBundle(machine.sys, line.bundle ?? ".", line.config);
  const container = { id: line.id ?? "", door: "runtime", runtimeRoot: line.root ?? "" };
  return inject(machine, bundle, container) !== undefined;
}
