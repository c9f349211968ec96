/** From found devices to the edits of one container, in the order of the CDI specification, each with its source. */

import { OsError, quote, SluiceError } from "../sys/error.ts";
import type { Files, Stat } from "../sys/sys.ts";
import type { FoundDevice } from "./registry.ts";
import type { ContainerEdits, DeviceNode } from "./spec.ts";

export interface EditSource {
  /** The spec file. */
  readonly path: string;
  readonly kind: string;
  /** The device's own name; absent for the edits that a spec makes for each of its devices. */
  readonly device?: string;
}

export interface SourcedEdits {
  readonly edits: ContainerEdits;
  readonly source: EditSource;
}

/** A device node with everything that an OCI runtime needs. */
export interface ResolvedDeviceNode extends DeviceNode {
  hostPath: string;
  type: string;
}

/**
 * The edits of devices in the order of the request: before the first device of a spec those of the spec, then the
 * device's own. To be applied in this order, one after the other; lists add up and the last `intelRdt` wins. A device
 * that is named again adds nothing (its hooks would run twice).
 * @throws SluiceError E_CDI_NET_DEVICE if two devices move the same network interface, or to the same name: a spec is
 * checked for that, but nothing else checks what comes together here
 */
export function collectEdits(found: readonly FoundDevice[]): SourcedEdits[] {
  const collected: SourcedEdits[] = [];
  const specs = new Set<string>();
  const devices = new Set<string>();
  for (const { name, device, spec, path } of found) {
    if (devices.has(name)) continue;
    devices.add(name);
    if (!specs.has(path)) {
      specs.add(path);
      if (spec.containerEdits !== undefined) {
        collected.push({ edits: spec.containerEdits, source: { path, kind: spec.kind } });
      }
    }
    collected.push({ edits: device.containerEdits, source: { path, kind: spec.kind, device: device.name } });
  }
  checkNetDevices(collected);
  return collected;
}

function sourceName(source: EditSource): string {
  return source.device === undefined ? `the spec of ${source.kind}` : `${source.kind}=${source.device}`;
}

function checkNetDevices(collected: readonly SourcedEdits[]): void {
  const seen = new Map<string, EditSource>();
  for (const { edits, source } of collected) {
    for (const device of edits.netDevices ?? []) {
      for (const key of ["hostInterfaceName", "name"] as const) {
        const other = seen.get(`${key}=${device[key]}`);
        if (other !== undefined) {
          const what = key === "name" ? "give a network interface the name" : "move the network interface";
          throw new SluiceError(
            "E_CDI_NET_DEVICE",
            `${sourceName(other)} and ${sourceName(source)} both ${what} ${quote(device[key])}`,
            "ask for only one of them",
          );
        }
        seen.set(`${key}=${device[key]}`, source);
      }
    }
  }
}

const NODE_TYPES: Readonly<Record<string, string>> = { block: "b", char: "c", fifo: "p" };

function refused(node: DeviceNode, what: string, remedy: string): SluiceError {
  const from = node.hostPath === undefined || node.hostPath === node.path ? "" : ` (from ${quote(node.hostPath)})`;
  return new SluiceError("E_CDI_DEVICE_NODE", `device node ${quote(node.path)}${from}: ${what}`, remedy);
}

/**
 * Fills in what device nodes leave out from the nodes of the host, by the rules of the reference library: a node with a
 * type and a major number (or a FIFO) stands for itself and need not exist on the host; any other one must, takes its
 * type and numbers from there, and must not contradict its type. Numbers that the spec gives are kept. Links are not
 * followed. Makes new nodes, so that the next container asks the host again.
 * @throws SluiceError E_CDI_DEVICE_NODE
 */
export function resolveDeviceNodes(nodes: readonly DeviceNode[], files: Files): ResolvedDeviceNode[] {
  return nodes.map((node) => resolveDeviceNode(node, files));
}

function resolveDeviceNode(node: DeviceNode, files: Files): ResolvedDeviceNode {
  const { type, fileMode, major, minor } = lookAtNode(node, files);
  const resolved: ResolvedDeviceNode = { ...node, hostPath: node.hostPath ?? node.path, type };
  if (fileMode !== undefined) resolved.fileMode = fileMode;
  if (major !== undefined) resolved.major = major;
  if (minor !== undefined) resolved.minor = minor;
  return resolved;
}

/** What the host has a say in of a device node. */
export interface HostsNode {
  readonly type: string;
  readonly fileMode: number | undefined;
  readonly major: number | undefined;
  readonly minor: number | undefined;
}

/**
 * What `resolveDeviceNodes` takes from the host.
 * @throws SluiceError E_CDI_DEVICE_NODE
 */
export function lookAtNode(node: DeviceNode, files: Files): HostsNode {
  const hostPath = node.hostPath ?? node.path;
  const isComplete = node.type !== undefined && ((node.major ?? 0) !== 0 || node.type === "p");
  let stat: Stat | undefined;
  let reason = "there is no such node on the host";
  try {
    stat = files.lstat(hostPath);
  } catch (e) {
    if (!(e instanceof OsError)) throw e;
    reason = `the host's node cannot be looked at (${e.code})`;
  }
  const type = stat === undefined ? undefined : NODE_TYPES[stat.kind];
  if (stat === undefined || type === undefined) {
    if (node.type !== undefined && isComplete) {
      return { type: node.type, fileMode: node.fileMode, major: node.major, minor: node.minor };
    }
    throw refused(
      node,
      stat === undefined ? reason : `what the host has there is a ${stat.kind}, not a device node`,
      "load the device's driver, or write the spec anew if the device is gone",
    );
  }

  if (!isComplete && node.type !== undefined && node.type !== type) {
    throw refused(
      node,
      `the spec says type ${quote(node.type)}, and the host's node has type "${type}"`,
      "write the spec anew, or leave out the type",
    );
  }
  const isOfHost = (node.type ?? type) !== "p" && (node.major ?? 0) === 0;
  return {
    type: node.type ?? type,
    fileMode: node.fileMode ?? stat.mode,
    major: isOfHost ? stat.major : node.major,
    minor: isOfHost ? stat.minor : node.minor,
  };
}
