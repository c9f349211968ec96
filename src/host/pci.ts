import type { Look } from "./look.ts";

/** A PCI function, as sysfs tells of it (kernel documentation, ABI/testing/sysfs-bus-pci). */
export interface PciDevice {
  /** `domain:bus:device.function`, such as `0000:41:00.0`. */
  readonly address: string;
  readonly vendor: number;
  readonly device: number;
  /** Base class and subclass, 16 bits: 0x0300 a VGA controller, 0x0302 a 3D controller, 0x1200 an accelerator. */
  readonly class: number;
  /** Absent where the machine has no NUMA nodes. */
  readonly numaNode?: number;
  /** The kernel driver that it is bound to. */
  readonly driver?: string;
  readonly iommuGroup?: string;
  /** Names of its DRM nodes, below /dev/dri: `card0`, `renderD128`. */
  readonly drm: readonly string[];
  /** Of a virtual function: the address of its physical function. */
  readonly physicalFunction?: string;
}

const DEVICES = "/sys/bus/pci/devices";
/** Of a PCI function, as sysfs and drivers write it. */
export const ADDRESS = /^[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$/;

/** Where sysfs has a PCI function's files. */
export function pciFolder(address: string): string {
  return `${DEVICES}/${address}`;
}

/** Display controllers and processing accelerators, which GPUs are, in the order of their addresses. */
export function readGpuFunctions(look: Look): PciDevice[] {
  const found: PciDevice[] = [];
  for (const address of look.names(DEVICES)) {
    if (!ADDRESS.test(address)) {
      look.note(`${DEVICES}/${address}`, "its name is no PCI address");
      continue;
    }
    const folder = pciFolder(address);
    const code = look.number(`${folder}/class`);
    if (code === undefined) continue;
    const base = code >> 16;
    if (base !== 0x03 && base !== 0x12) continue;
    const [vendor, device] = [look.number(`${folder}/vendor`), look.number(`${folder}/device`)];
    if (vendor === undefined || device === undefined) continue;
    const numaNode = look.number(`${folder}/numa_node`);
    const driver = look.linkName(`${folder}/driver`);
    const iommuGroup = look.linkName(`${folder}/iommu_group`);
    const physicalFunction = look.linkName(`${folder}/physfn`);
    found.push({
      address,
      vendor,
      device,
      class: code >> 8,
      // -1 where the firmware does not say.
      ...(numaNode === undefined || numaNode < 0 ? {} : { numaNode }),
      ...(driver === undefined ? {} : { driver }),
      ...(iommuGroup === undefined ? {} : { iommuGroup }),
      drm: look.names(`${folder}/drm`).filter((name) => /^(?:card|renderD)\d+$/.test(name)),
      ...(physicalFunction === undefined ? {} : { physicalFunction }),
    });
  }
  return found;
}
