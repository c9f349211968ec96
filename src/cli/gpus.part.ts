/** `sluice gpus`: what this machine has. A part, since no other command reads a machine. */

import type { AmdGpu } from "../host/amd.ts";
import { type Host, readHost } from "../host/host.ts";
import type { IntelGpu } from "../host/intel.ts";
import type { Unseen } from "../host/look.ts";
import type { Node } from "../host/node.ts";
import type { Nvidia, NvidiaGpu } from "../host/nvidia.ts";
import type { Vfio } from "../host/vfio.ts";
import { printable } from "../sys/error.ts";
import type { Files, Sys } from "../sys/sys.ts";
import { table } from "./table.ts";

/** Prints the machine's GPUs, MIG devices and vGPU types. What could not be read is told on standard error. */
export function showGpus(sys: Sys, files: Files, json: boolean): void {
  const host = readHost(files);
  if (json) {
    sys.out(`${JSON.stringify(host, null, 2)}\n`);
    return;
  }
  const sections = [
    ...platform(host.platform),
    ...nvidia(host.nvidia),
    ...amd(host.amd.gpus, host.amd.driverVersion),
    ...intel(host.intel),
    ...virtual(host.vfio),
  ];
  sys.out(sections.length === 0 ? "No GPUs.\n" : sections.join("\n"));
  for (const line of unseen(host.unseen, sys.euid)) sys.err(`sluice: ${line}\n`);
}

function platform(name: Host["platform"]): string[] {
  if (name === "linux") return [];
  const what = { wsl: "Windows Subsystem for Linux (/dev/dxg)", tegra: "NVIDIA Tegra" }[name];
  return [`This is ${what}, whose GPU has a driver of another kind: Sluice does not serve it yet.\n`];
}

function paths(nodes: readonly (Node | undefined)[]): string {
  return nodes.flatMap((node) => node?.path ?? []).join(" ") || "-";
}

function numa(node: number | undefined): string {
  return node === undefined ? "-" : String(node);
}

function nvidia(has: Nvidia): string[] {
  if (has.gpus.length === 0 && has.driver === undefined) return [];
  const rows = has.gpus.flatMap((gpu) => [gpuRow(gpu), ...migRows(gpu)]);
  const heading = ["GPU", "MODEL", "UUID", "ADDRESS", "NUMA", "NODES", "STATE"];
  return [`NVIDIA, ${driverOf(has)}\n${rows.length === 0 ? "" : table(heading, rows)}`];
}

function driverOf({ driverVersion, driver }: Nvidia): string {
  const loaded = driverVersion === undefined ? "no driver loaded" : `driver ${driverVersion}`;
  if (driver === undefined) return `${loaded}, no driver files`;
  const count = driver.libraries.length;
  const others = driver.otherVersions.length === 0 ? "" : `, and those of ${driver.otherVersions.join(", ")}`;
  return `${loaded}, ${count === 0 ? "no" : count} libraries of ${driver.version}${others}`;
}

const STATES: Readonly<Record<NvidiaGpu["state"], string>> = {
  usable: "usable",
  lost: "lost: it does not answer any more",
  excluded: "excluded from the driver by its settings",
  "no-node": "without its device node",
  vfio: "given to virtual machines (VFIO)",
  "no-driver": "without NVIDIA's driver",
};

function gpuRow(gpu: NvidiaGpu): string[] {
  const driver = gpu.state === "no-driver" && gpu.pci?.driver !== undefined ? ` (${gpu.pci.driver} has it)` : "";
  const mig = gpu.mig === undefined ? "" : `, cut into ${gpu.mig.length} MIG devices`;
  return [
    gpu.index === undefined ? "-" : String(gpu.index),
    gpu.model ?? "-",
    gpu.uuid ?? "-",
    gpu.address,
    numa(gpu.pci?.numaNode),
    paths([gpu.node, ...gpu.drm]),
    `${STATES[gpu.state]}${driver}${mig}`,
  ];
}

function migRows(gpu: NvidiaGpu): string[][] {
  return (gpu.mig ?? []).map((mig) => [
    `  ${gpu.index}:${mig.index}`,
    `GPU instance ${mig.gpuInstance}, compute instance ${mig.computeInstance}`,
    "-",
    "",
    "",
    [mig.gpuInstanceMinor, mig.computeInstanceMinor].map((minor) => `/dev/nvidia-caps/nvidia-cap${minor}`).join(" "),
    "",
  ]);
}

function amd(gpus: readonly AmdGpu[], version: string | undefined): string[] {
  if (gpus.length === 0) return [];
  const rows = gpus.flatMap(({ pci, devices, computePartition, memoryPartition }) =>
    devices.map((device) => [
      String(device.index),
      pci.address,
      numa(pci.numaNode),
      device.partition === undefined
        ? "-"
        : `${device.partition} (${computePartition ?? "?"}, ${memoryPartition ?? "?"})`,
      paths(device.drm),
    ]),
  );
  const driver = version === undefined ? "amdgpu" : `amdgpu ${version}`;
  return [`AMD, driver ${driver}\n${table(["GPU", "ADDRESS", "NUMA", "PARTITION", "NODES"], rows)}`];
}

function intel(gpus: readonly IntelGpu[]): string[] {
  if (gpus.length === 0) return [];
  const rows = gpus.map(({ index, pci, drm }) => [
    String(index),
    pci.device.toString(16).padStart(4, "0"),
    pci.address,
    numa(pci.numaNode),
    pci.driver ?? "-",
    paths(drm),
  ]);
  return [`Intel\n${table(["GPU", "DEVICE", "ADDRESS", "NUMA", "DRIVER", "NODES"], rows)}`];
}

function virtual({ mdevParents, mdevs, vgpuFunctions }: Vfio): string[] {
  const sections: string[] = [];
  // Of a card in virtual functions each has its types: what counts is how many there are of a type.
  const types = new Map<string, { row: string[]; available: number }>();
  for (const parent of mdevParents) {
    const card = parent.physicalFunction ?? parent.name;
    for (const { id, name, available } of parent.types) {
      const known = types.get(`${card} ${id}`);
      if (known !== undefined) known.available += available;
      else types.set(`${card} ${id}`, { row: [card, name, id], available });
    }
  }
  if (types.size > 0) {
    const rows = [...types.values()].map(({ row, available }) => [...row, String(available)]);
    sections.push(`Mediated devices\n${table(["PARENT", "TYPE", "ID", "AVAILABLE"], rows)}`);
  }
  const made = mdevs.map((one) => [one.uuid, one.type ?? "-", one.iommuGroup ?? "-"]);
  if (made.length > 0) sections.push(`Made of them\n${table(["UUID", "TYPE", "IOMMU GROUP"], made)}`);

  const functions = vgpuFunctions.map((one) => [
    one.address,
    one.physicalFunction,
    one.currentType === 0 ? "-" : String(one.currentType),
    one.creatable.map((type) => type.name).join(", ") || "-",
  ]);
  if (functions.length > 0) {
    sections.push(`vGPU functions\n${table(["FUNCTION", "OF", "TYPE", "COULD BE"], functions)}`);
  }
  return sections;
}

/** As many as help; the rest are of the same cause, mostly. */
const SHOWN = 5;

function unseen(all: readonly Unseen[], euid: number): string[] {
  const lines = all.slice(0, SHOWN).map(({ path, reason }) => `not seen: ${printable(path)} (${reason})`);
  if (all.length > SHOWN) lines.push(`not seen: ${all.length - SHOWN} more (--json has them)`);
  const denied = all.some(({ reason }) => reason === "EACCES" || reason === "EPERM");
  if (denied && euid !== 0) lines.push("run it as root to see all");
  return lines;
}
