import type { Look } from "./look.ts";
import { type Node, nodeAt } from "./node.ts";
import { type PciDevice, pciFolder } from "./pci.ts";

/** A kind of mediated device that a parent can make (kernel documentation, vfio-mediated-device). */
export interface MdevType {
  /** `nvidia-694`, `i915-GVTg_V5_4`: how sysfs calls it. */
  readonly id: string;
  /** `GRID A100D-10C`: how its driver calls it; the id where it gives no name. */
  readonly name: string;
  readonly available: number;
}

export interface MdevParent {
  /** A PCI address, mostly. */
  readonly name: string;
  /** Where it is a virtual function: the address of the card. */
  readonly physicalFunction?: string;
  readonly types: readonly MdevType[];
}

/** A mediated device that has been made. */
export interface Mdev {
  readonly uuid: string;
  /** The name of the parent that it was made of. */
  readonly parent?: string;
  readonly type?: string;
  readonly iommuGroup?: string;
}

/** A virtual function that NVIDIA's vendor-specific VFIO framework makes vGPUs of (reference kata-vgpu.md 2.2). */
export interface VgpuFunction {
  readonly address: string;
  readonly physicalFunction: string;
  /** The type of its vGPU; 0 where it has none. */
  readonly currentType: number;
  /** The types that it could be given now: ids are unique on one card only. */
  readonly creatable: readonly { readonly id: number; readonly name: string }[];
  readonly iommuGroup?: string;
}

export interface Vfio {
  readonly mdevParents: readonly MdevParent[];
  readonly mdevs: readonly Mdev[];
  readonly vgpuFunctions: readonly VgpuFunction[];
  /** `/dev/vfio/<group>`, by group. */
  readonly groups: readonly Node[];
}

export function readVfio(look: Look, functions: readonly PciDevice[]): Vfio {
  return {
    mdevParents: look.names("/sys/class/mdev_bus").map((name) => {
      const card = functions.find((pci) => pci.address === name)?.physicalFunction;
      return { ...readParent(look, name), ...(card === undefined ? {} : { physicalFunction: card }) };
    }),
    mdevs: look.names("/sys/bus/mdev/devices").map((uuid) => readMdev(look, uuid)),
    vgpuFunctions: functions.flatMap((pci) => readVgpuFunction(look, pci) ?? []),
    groups: look
      .names("/dev/vfio")
      .filter((name) => /^\d+$/.test(name))
      .flatMap((name) => nodeAt(look, `/dev/vfio/${name}`) ?? []),
  };
}

function readParent(look: Look, name: string): MdevParent {
  const folder = `/sys/class/mdev_bus/${name}/mdev_supported_types`;
  const types = look.names(folder).map((id): MdevType => {
    return {
      id,
      name: look.text(`${folder}/${id}/name`) ?? id,
      available: look.number(`${folder}/${id}/available_instances`) ?? 0,
    };
  });
  return { name, types };
}

function readMdev(look: Look, uuid: string): Mdev {
  const folder = `/sys/bus/mdev/devices/${uuid}`;
  const type = look.linkName(`${folder}/mdev_type`);
  const iommuGroup = look.linkName(`${folder}/iommu_group`);
  // The device's folder lies in its parent's.
  const parent = look.link(folder)?.split("/").at(-2);
  return {
    uuid,
    ...(parent === undefined ? {} : { parent }),
    ...(type === undefined ? {} : { type }),
    ...(iommuGroup === undefined ? {} : { iommuGroup }),
  };
}

function readVgpuFunction(look: Look, pci: PciDevice): VgpuFunction | undefined {
  const { address, physicalFunction, iommuGroup } = pci;
  if (physicalFunction === undefined) return undefined;
  const folder = `${pciFolder(address)}/nvidia`;
  const currentType = look.number(`${folder}/current_vgpu_type`);
  if (currentType === undefined) return undefined;
  // Lines of `1428 : NVIDIA H200X-141C`, below a heading that some drivers write.
  const list = look.text(`${folder}/creatable_vgpu_types`) ?? "";
  const creatable = [...list.matchAll(/^(\d{1,6})\s*:\s*(.+)$/gm)].map(([, id, name]) => {
    return { id: Number(id), name: (name as string).trim() };
  });
  return { address, physicalFunction, currentType, creatable, ...(iommuGroup === undefined ? {} : { iommuGroup }) };
}
