/** What containers of the tests run to show which GPUs they have. */

import * as fs from "node:fs";
import * as path from "node:path";
import type { Machine } from "./machine.ts";

/**
 * A script for busybox's shell that opens GPU 0's node and the control node, and nodes of GPU 1 that it makes itself,
 * as a hostile program would: `nvidia0 opens`, `nvidiactl opens`, `nvidia1 absent`, `made refused`. Opening only: a read
 * of a stand-in could block. Where making a node is not allowed, `made not made`.
 */
export function showGpus(machine: Machine): string {
  const { rdev } = fs.statSync(path.join(machine.host.dir, "dev/nvidia1"));
  return `try() { if [ ! -c $2 ]; then echo $1 absent; elif (exec 3<>$2) 2>/dev/null; then echo $1 opens; else echo $1 refused; fi; }
try nvidia0 /dev/nvidia0; try nvidiactl /dev/nvidiactl; try nvidia1 /dev/nvidia1
rm -f /dev/made; if mknod /dev/made c ${rdev >> 8} ${rdev & 0xff} 2>/dev/null; then try made /dev/made; else echo made not made; fi`;
}

/** What `showGpus` prints in a container that has GPU 0. */
export const HAS_GPU_0 = "nvidia0 opens\nnvidiactl opens\nnvidia1 absent\nmade refused\n";
/** In a container without the right to make nodes. */
export const HAS_GPU_0_NO_MKNOD = "nvidia0 opens\nnvidiactl opens\nnvidia1 absent\nmade not made\n";
/** In a container without a GPU. */
export const HAS_NONE = "nvidia0 absent\nnvidiactl absent\nnvidia1 absent\nmade refused\n";
