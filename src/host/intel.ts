import type { Look } from "./look.ts";
import { type Node, nodeAt } from "./node.ts";
import type { PciDevice } from "./pci.ts";

export const INTEL_VENDOR = 0x8086;

export interface IntelGpu {
  /** Its place among the machine's Intel GPUs in the order of their addresses: the name in CDI. */
  readonly index: number;
  readonly pci: PciDevice;
  /** Its card and render nodes. */
  readonly drm: readonly Node[];
}

/** GPUs, and virtual functions of GPUs, that one of Intel's graphics drivers has. */
export function readIntel(look: Look, functions: readonly PciDevice[]): IntelGpu[] {
  return functions
    .filter((pci) => pci.vendor === INTEL_VENDOR && (pci.driver === "i915" || pci.driver === "xe"))
    .map((pci, index) => ({ index, pci, drm: pci.drm.flatMap((name) => nodeAt(look, `/dev/dri/${name}`) ?? []) }));
}
