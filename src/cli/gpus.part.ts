/** `sluice gpus`: what this machine has, and who has it. A part, since few commands read a machine. */

import type { AmdGpu } from "../host/amd.ts";
import { type Host, readHost } from "../host/host.ts";
import type { IntelGpu } from "../host/intel.ts";
import type { Node } from "../host/node.ts";
import type { Nvidia, NvidiaGpu } from "../host/nvidia.ts";
import type { MdevParent, VgpuFunction } from "../host/vfio.ts";
import type { Files, Sys } from "../sys/sys.ts";
import { capPath, type Held, readHeld, type User } from "./gpus-held.ts";
import { table } from "./table.ts";
import { unseenLines } from "./unseen.ts";

/**
 * Prints the machine's GPUs with their MIG devices and vGPUs, and who has them. What could not be seen is told on
 * standard error.
 *
 * @param stateDir where this machine's receipts are; absent of another tree
 */
export function showGpus(sys: Sys, files: Files, json: boolean, stateDir?: string): void {
  const host = readHost(files);
  const held = readHeld(sys, files, host, stateDir);
  if (json) {
    sys.out(`${JSON.stringify({ ...host, ...(held === undefined ? {} : { users: held.users }) }, null, 2)}\n`);
  } else {
    const sections = [
      ...platform(host.platform),
      ...nvidia(host, held),
      ...section(`AMD, driver ${amdDriver(host)}`, amdRows(host), held),
      ...section("Intel", intelRows(host), held),
      ...section("Mediated devices of others", otherRows(host), held),
    ];
    sys.out(sections.length === 0 ? "No GPUs.\n" : sections.join("\n"));
  }
  for (const line of unseen(host, held, sys.euid)) sys.err(`sluice: ${line}\n`);
}

/** A GPU, or what a GPU is divided into. */
interface Row {
  /** GPU, MODEL, UUID, ADDRESS, NUMA, NODES, STATE. */
  readonly cells: readonly string[];
  /** The nodes by which it is used: who has one of them has it. */
  readonly nodes: readonly string[];
  /** Nodes of its parts: who has one of these stands at the part. */
  readonly parts?: readonly string[];
}

const HEADING = ["GPU", "MODEL", "UUID", "ADDRESS", "NUMA", "NODES", "STATE"];

/** A heading and a table; empty where there are no rows. */
function section(heading: string, rows: readonly Row[], held: Held | undefined): string[] {
  if (rows.length === 0) return [];
  if (held === undefined)
    return [
      `${heading}\n${table(
        HEADING,
        rows.map((row) => row.cells),
      )}`,
    ];
  const lines = rows.flatMap(({ cells, nodes, parts = [] }) => {
    const users = held.users
      .filter((user) => user.nodes.some((path) => nodes.includes(path)))
      .filter((user) => !user.nodes.some((path) => parts.includes(path)))
      .map(userText);
    return [[...cells, users[0] ?? "-"], ...users.slice(1).map((user) => [...HEADING.map(() => ""), user])];
  });
  return [`${heading}\n${table([...HEADING, "HELD BY"], lines)}`];
}

/** Of a container's processes, as many as tell what it is. */
const PROCESSES = 3;

function userText({ container, door, processes }: User): string {
  const shown = processes.slice(0, PROCESSES).map(({ pid, name }) => `${pid} ${name}`);
  if (processes.length > PROCESSES) shown.push(`and ${processes.length - PROCESSES} more`);
  if (container === undefined) return shown.join(", ");
  const by = door === undefined ? "" : ` (sluice ${door})`;
  return `container ${container.slice(0, 12)}${by}${shown.length === 0 ? "" : `: ${shown.join(", ")}`}`;
}

function platform(name: Host["platform"]): string[] {
  if (name === "linux") return [];
  const what = { wsl: "Windows Subsystem for Linux (/dev/dxg)", tegra: "NVIDIA Tegra" }[name];
  return [`This is ${what}, whose GPU has a driver of another kind: Sluice does not serve it yet.\n`];
}

function pathsOf(nodes: readonly (Node | undefined)[]): string[] {
  return nodes.flatMap((node) => node?.path ?? []);
}

function listed(paths: readonly string[]): string {
  return paths.join(" ") || "-";
}

function numa(node: number | undefined): string {
  return node === undefined ? "-" : String(node);
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

function nvidia(host: Host, held: Held | undefined): string[] {
  const heading = `NVIDIA, ${driverOf(host.nvidia)}`;
  if (host.nvidia.gpus.length > 0) return section(heading, nvidiaRows(host), held);
  return host.nvidia.driver === undefined ? [] : [`${heading}\n`];
}

function nvidiaRows(host: Host): Row[] {
  return host.nvidia.gpus.flatMap((gpu) => [gpuRow(host, gpu), ...migRows(gpu), ...virtualRows(host, gpu.address)]);
}

function gpuRow(host: Host, gpu: NvidiaGpu): Row {
  const driver = gpu.state === "no-driver" && gpu.pci?.driver !== undefined ? ` (${gpu.pci.driver} has it)` : "";
  const mig = gpu.mig === undefined ? "" : `, cut into ${gpu.mig.length} MIG devices`;
  const own = gpu.state === "vfio" ? groupNodes(host, gpu.pci?.iommuGroup) : pathsOf([gpu.node, ...gpu.drm]);
  return {
    cells: [
      gpu.index === undefined ? "-" : String(gpu.index),
      gpu.model ?? "-",
      gpu.uuid ?? "-",
      gpu.address,
      numa(gpu.pci?.numaNode),
      listed(own),
      `${STATES[gpu.state]}${driver}${mig}`,
    ],
    nodes: own,
    // Who has a MIG device has its GPU's node too.
    parts: (gpu.mig ?? []).map((mig) => capPath(mig.computeInstanceMinor)),
  };
}

function migRows(gpu: NvidiaGpu): Row[] {
  return (gpu.mig ?? []).map((mig) => ({
    cells: [
      `  ${gpu.index}:${mig.index}`,
      `GPU instance ${mig.gpuInstance}, compute instance ${mig.computeInstance}`,
      mig.uuid ?? "-",
      "",
      "",
      listed([mig.gpuInstanceMinor, mig.computeInstanceMinor].map(capPath)),
      "MIG device",
    ],
    // Of the two, the GPU instance's node is that of all its compute instances.
    nodes: [capPath(mig.computeInstanceMinor)],
  }));
}

function amdDriver({ amd }: Host): string {
  return amd.driverVersion === undefined ? "amdgpu" : `amdgpu ${amd.driverVersion}`;
}

function amdRows(host: Host): Row[] {
  return host.amd.gpus.flatMap((gpu) => [
    ...gpu.devices.map((device) => ({
      cells: [
        String(device.index),
        gpu.pci.device.toString(16).padStart(4, "0"),
        gpu.uniqueId ?? "-",
        gpu.pci.address,
        numa(gpu.pci.numaNode),
        listed(pathsOf(device.drm)),
        partition(gpu, device.partition),
      ],
      nodes: pathsOf(device.drm),
    })),
    ...virtualRows(host, gpu.pci.address),
  ]);
}

function partition({ computePartition, memoryPartition }: AmdGpu, number: number | undefined): string {
  return number === undefined ? "whole" : `partition ${number} (${computePartition ?? "?"}, ${memoryPartition ?? "?"})`;
}

function intelRows(host: Host): Row[] {
  return host.intel.flatMap(({ index, pci, drm }: IntelGpu) => [
    {
      cells: [
        String(index),
        pci.device.toString(16).padStart(4, "0"),
        "-",
        pci.address,
        numa(pci.numaNode),
        listed(pathsOf(drm)),
        `driver ${pci.driver ?? "-"}`,
      ],
      nodes: pathsOf(drm),
    },
    ...virtualRows(host, pci.address),
  ]);
}

function groupNodes(host: Host, group: string | undefined): string[] {
  return group === undefined ? [] : pathsOf(host.vfio.groups).filter((path) => path === `/dev/vfio/${group}`);
}

/** What can be made of a card for virtual machines, and what has been made of it. */
function virtualRows(host: Host, address: string): Row[] {
  const { mdevParents, vgpuFunctions } = host.vfio;
  return [
    ...mdevRows(
      host,
      mdevParents.filter((parent) => (parent.physicalFunction ?? parent.name) === address),
    ),
    ...functionRows(
      host,
      vgpuFunctions.filter((one) => one.physicalFunction === address),
    ),
  ];
}

/** Of a card in virtual functions each has its types: what counts is how many there are of a type. */
function mdevRows(host: Host, parents: readonly MdevParent[]): Row[] {
  const types = new Map<string, { name: string; available: number }>();
  for (const { id, name, available } of parents.flatMap((parent) => parent.types)) {
    const known = types.get(id);
    if (known !== undefined) known.available += available;
    else types.set(id, { name, available });
  }
  const made = host.vfio.mdevs.filter((mdev) => parents.some(({ name }) => name === mdev.parent));
  return [
    ...made.map(({ uuid, type, parent = "-", iommuGroup }): Row => {
      const nodes = groupNodes(host, iommuGroup);
      const what = type === undefined ? "-" : (types.get(type)?.name ?? type);
      return { cells: ["  mdev", what, uuid, parent, "", listed(nodes), "made"], nodes };
    }),
    ...[...types].map(
      ([id, { name, available }]): Row => ({
        cells: ["  mdev type", name, id, "", "", "-", `${available} available`],
        nodes: [],
      }),
    ),
  ];
}

function functionRows(host: Host, functions: readonly VgpuFunction[]): Row[] {
  const used = functions.filter(({ currentType }) => currentType !== 0);
  const free = new Map<string, VgpuFunction[]>();
  for (const one of functions) {
    if (one.currentType !== 0) continue;
    const could = one.creatable.map(({ name }) => name).join(", ");
    free.set(could, [...(free.get(could) ?? []), one]);
  }
  return [
    ...used.map((one): Row => {
      const nodes = groupNodes(host, one.iommuGroup);
      const what = `vGPU of type ${one.currentType}`;
      return { cells: ["  vGPU", what, "-", one.address, "", listed(nodes), "made"], nodes };
    }),
    // Dozens of functions could be the same.
    ...[...free].map(([could, [first, ...rest]]): Row => {
      const address = `${first?.address}${rest.length === 0 ? "" : ` and ${rest.length} more`}`;
      const state = could === "" ? "no vGPU, and none can be made now" : `no vGPU; could be ${could}`;
      return { cells: ["  function", "-", "-", address, "", "-", state], nodes: [] };
    }),
  ];
}

/** Mediated devices of what is no GPU that we know. */
function otherRows(host: Host): Row[] {
  const known = new Set([
    ...host.nvidia.gpus.map((gpu) => gpu.address),
    ...host.amd.gpus.map((gpu) => gpu.pci.address),
    ...host.intel.map((gpu) => gpu.pci.address),
  ]);
  const parents = host.vfio.mdevParents.filter((parent) => !known.has(parent.physicalFunction ?? parent.name));
  return [...new Set(parents.map((parent) => parent.physicalFunction ?? parent.name))].flatMap((card) => [
    { cells: ["-", "-", "-", card, "", "-", ""], nodes: [] },
    ...mdevRows(
      host,
      parents.filter((parent) => (parent.physicalFunction ?? parent.name) === card),
    ),
  ]);
}

function unseen(host: Host, held: Held | undefined, euid: number): string[] {
  const lines = unseenLines(host.unseen, euid);
  if (held?.unseen === undefined) return lines;
  return [`not seen: what others hold (${held.unseen}); run it as root to see all`, ...lines];
}
