import { readHolders } from "../host/holders.ts";
import type { Host } from "../host/host.ts";
import type { Node } from "../host/node.ts";
import { Receipts } from "../plan/receipt.ts";
import { OsError } from "../sys/error.ts";
import type { Files, Sys } from "../sys/sys.ts";

/** A container, or a process that runs in none, and what it has of the machine's GPUs. */
export interface User {
  /** The container's id. */
  readonly container?: string;
  /** Of a container that Sluice gave devices to: the door that did, and the names of the devices. */
  readonly door?: string;
  readonly devices?: readonly string[];
  /** Those that have one of the nodes open. */
  readonly processes: readonly { readonly pid: number; readonly name: string }[];
  /** Paths of the nodes that it was given, or has open. */
  readonly nodes: readonly string[];
}

export interface Held {
  readonly users: readonly User[];
  /** Why there may be more; absent where all was seen. */
  readonly unseen?: string;
}

/** The nodes by which a machine's GPUs, MIG devices and vGPUs are used; those that all GPUs share are not among them. */
export function nodesOf({ nvidia, amd, intel, vfio }: Host): Node[] {
  const { capsMajor } = nvidia;
  return [
    ...nvidia.gpus.flatMap((gpu) => [
      ...(gpu.node === undefined ? [] : [gpu.node]),
      ...gpu.drm,
      ...(gpu.mig ?? []).flatMap((mig) =>
        capsMajor === undefined
          ? []
          : [capNode(capsMajor, mig.gpuInstanceMinor), capNode(capsMajor, mig.computeInstanceMinor)],
      ),
    ]),
    ...amd.gpus.flatMap((gpu) => gpu.devices.flatMap((device) => device.drm)),
    ...intel.flatMap((gpu) => gpu.drm),
    ...vfio.groups,
  ];
}

function capNode(major: number, minor: number): Node {
  return { path: capPath(minor), major, minor };
}

/** The node of a MIG capability. */
export function capPath(minor: number): string {
  return `/dev/nvidia-caps/nvidia-cap${minor}`;
}

/**
 * Who has which GPU, by the receipts of Sluice's doors and by what processes have open.
 *
 * @param stateDir of this machine's receipts; absent of another tree, whose receipts we cannot trust
 * @returns `undefined` where neither processes nor receipts can be seen: another machine's files
 */
export function readHeld(sys: Sys, files: Files, host: Host, stateDir: string | undefined): Held | undefined {
  const nodes = nodesOf(host);
  const { processes, total, denied } = readHolders(files, nodes);
  if (total === 0 && stateDir === undefined) return undefined;

  const users = new Map<string, User>();
  const add = (key: string, user: User): void => {
    const known = users.get(key);
    const both = {
      processes: [...(known?.processes ?? []), ...user.processes],
      nodes: [...(known?.nodes ?? []), ...user.nodes],
    };
    users.set(key, { ...user, ...known, ...both });
  };
  for (const { id, door, devices, edits } of stateDir === undefined ? [] : receiptsOf(sys, stateDir)) {
    const numbers = new Set(
      edits.flatMap((planned) => (planned.edits.deviceNodes ?? []).map(({ major, minor }) => `${major}:${minor}`)),
    );
    const given = nodes.filter(({ major, minor }) => numbers.has(`${major}:${minor}`)).map(({ path }) => path);
    if (given.length === 0) continue;
    add(id, { container: id, door, devices: devices.map(({ name }) => name), processes: [], nodes: given });
  }
  for (const { pid, name, container, nodes: open } of processes) {
    const user = { processes: [{ pid, name }], nodes: open };
    if (container === undefined) add(`process ${pid}`, user);
    else add(container, { container, ...user });
  }
  // The kernel may be told to hide other users' processes (hidepid of /proc): none of them need be denied to us.
  const unseen =
    denied > 0
      ? `${denied} of ${total} processes are other users'`
      : sys.euid !== 0 && nodes.length > 0
        ? "other users' processes may be hidden"
        : undefined;
  return {
    users: [...users.values()].map((user) => {
      const has = new Set(user.nodes);
      return { ...user, nodes: nodes.map(({ path }) => path).filter((path) => has.has(path)) };
    }),
    ...(unseen === undefined ? {} : { unseen }),
  };
}

function receiptsOf(sys: Sys, stateDir: string) {
  const receipts = new Receipts(sys, stateDir);
  try {
    return receipts.ids().flatMap((id) => {
      const receipt = receipts.read(id);
      // A container that ended without Sluice leaves its receipt, and not its bundle. sluiced, which knows of no bundle,
      // sees to its receipts itself.
      const isGone = receipt !== undefined && receipt.config !== "" && sys.stat(receipt.config) === undefined;
      return receipt === undefined || isGone ? [] : [receipt];
    });
  } catch (thrown) {
    if (thrown instanceof OsError) return []; // other users' receipts, where we are not root
    throw thrown;
  }
}
