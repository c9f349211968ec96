/** What only a call that ends a container needs; see runtime.ts. */

import type { CommandLine } from "../oci/cmdline.ts";
import type { Machine } from "../plan/machine.ts";
import { Receipts } from "../plan/receipt.ts";

/** Takes back the receipt of a container that the runtime has deleted. */
export function release(machine: Machine, line: CommandLine): void {
  new Receipts(machine.sys, machine.stateDir).release(line.id ?? "", line.root ?? "");
}
