import type { Look } from "./look.ts";
import { type Node, nodeAt } from "./node.ts";
import { type PciDevice, pciFolder } from "./pci.ts";

export const AMD_VENDOR = 0x1002;

/** A GPU, or a partition of one (of an MI300: several compute partitions are devices of their own). */
export interface AmdDevice {
  /** Its place among the machine's devices, in the order of address and render node: the name in CDI. */
  readonly index: number;
  /** Of the PCI function, which the partitions of a GPU share. */
  readonly address: string;
  /** Its place among the partitions of its GPU; absent of a GPU that is not partitioned. */
  readonly partition?: number;
  /** Its card and render nodes. */
  readonly drm: readonly Node[];
}

export interface AmdGpu {
  readonly pci: PciDevice;
  /** The hexadecimal serial number that ROCm names it by; absent where the driver does not tell it. */
  readonly uniqueId?: string;
  /** `SPX`, `DPX`, `CPX` ...; absent where the driver does not partition. */
  readonly computePartition?: string;
  readonly memoryPartition?: string;
  readonly devices: readonly AmdDevice[];
}

export interface Amd {
  /** `/dev/kfd`, the compute driver, which all devices share; absent where it is not loaded. */
  readonly kfd?: Node;
  readonly driverVersion?: string;
  readonly gpus: readonly AmdGpu[];
}

const TOPOLOGY = "/sys/class/kfd/kfd/topology/nodes";

/** A node of the compute driver's topology that is a GPU or a partition of one. */
interface Compute {
  readonly address: string;
  readonly renderMinor: number;
}

export function readAmd(look: Look, functions: readonly PciDevice[]): Amd {
  const kfd = nodeAt(look, "/dev/kfd");
  const driverVersion = look.text("/sys/module/amdgpu/version");
  const compute = readTopology(look);
  let index = 0;
  const gpus = functions
    .filter((pci) => pci.vendor === AMD_VENDOR && pci.driver === "amdgpu")
    .map((pci): AmdGpu => {
      const own = compute.filter((one) => one.address === pci.address);
      // Without the compute driver there are no partitions: the function's own nodes are the device.
      const renders = own.length > 0 ? own : [{ address: pci.address, renderMinor: renderMinorOf(pci) }];
      const devices = renders.map((one: Compute, i): AmdDevice => {
        // Partitions but the first have nodes of platform devices of their own, and no others.
        const drm = i === 0 ? pci.drm : drmOf(look, one.renderMinor);
        return {
          index: index++,
          address: pci.address,
          ...(renders.length > 1 ? { partition: i } : {}),
          drm: drm.flatMap((name) => nodeAt(look, `/dev/dri/${name}`) ?? []),
        };
      });
      const uniqueId = look.text(`${pciFolder(pci.address)}/unique_id`);
      const computePartition = look.text(`${pciFolder(pci.address)}/current_compute_partition`);
      const memoryPartition = look.text(`${pciFolder(pci.address)}/current_memory_partition`);
      return {
        pci,
        ...(uniqueId === undefined ? {} : { uniqueId }),
        ...(computePartition === undefined ? {} : { computePartition }),
        ...(memoryPartition === undefined ? {} : { memoryPartition }),
        devices,
      };
    });
  return {
    ...(kfd === undefined ? {} : { kfd }),
    ...(driverVersion === undefined ? {} : { driverVersion }),
    gpus,
  };
}

function renderMinorOf(pci: PciDevice): number {
  return Number(pci.drm.find((name) => name.startsWith("renderD"))?.slice("renderD".length) ?? -1);
}

/** The card and render nodes of the DRM device that has this render node. */
function drmOf(look: Look, renderMinor: number): string[] {
  return look
    .names(`/sys/class/drm/renderD${renderMinor}/device/drm`)
    .filter((name) => /^(?:card|renderD)\d+$/.test(name));
}

function readTopology(look: Look): Compute[] {
  const found: Compute[] = [];
  for (const name of look.names(TOPOLOGY)) {
    const text = look.text(`${TOPOLOGY}/${name}/properties`);
    if (text === undefined) continue;
    const properties = new Map(text.split("\n").map((line) => line.split(" ", 2) as [string, string]));
    const number = (key: string): number => Number(properties.get(key) ?? 0);
    // CPUs are nodes too, without SIMD units.
    if (number("simd_count") === 0) continue;
    const [location, domain, renderMinor] = [number("location_id"), number("domain"), number("drm_render_minor")];
    found.push({ address: addressOf(domain, location), renderMinor });
  }
  return found.sort((a, b) => a.renderMinor - b.renderMinor);
}

/** The location is bus, device and function as PCI packs them: 8, 5 and 3 bits. */
function addressOf(domain: number, location: number): string {
  const hex = (value: number, digits: number): string => value.toString(16).padStart(digits, "0");
  return `${hex(domain, 4)}:${hex((location >> 8) & 0xff, 2)}:${hex((location >> 3) & 0x1f, 2)}.${location & 7}`;
}
