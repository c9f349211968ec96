import type { Registry } from "../cdi/registry.ts";
import { Look } from "../host/look.ts";
import { type EntitledDevice, entitledDevices } from "../policy/allocated.ts";
import type { Allocation } from "../policy/allocation.ts";
import type { Entitled } from "../policy/grant-allocated.ts";
import { SluiceError } from "../sys/error.ts";
import type { Files } from "../sys/sys.ts";

/** Kinds of the CDI specs of GPUs, in which a device is looked for that is known by its nodes alone. */
const KINDS = ["nvidia.com/gpu", "amd.com/gpu", "intel.com/gpu"];
/** A node that all GPUs of a vendor share, where a spec has it with each device. */
const SHARED_NODES = ["/dev/kfd"];

export interface MachinesEntitlement {
  readonly entitled: readonly Entitled[];
  /** What was allocated and means no device here, for the audit. */
  readonly notUnderstood: readonly string[];
  /** Whether the specs alone tell it, so that it stays while they do. */
  readonly isOfSpecs: boolean;
}

/** Which devices of this machine, by their CDI names and their nodes, an allocation of the kubelet's means. */
export function entitledHere(allocation: Allocation, registry: Registry, host: Files): MachinesEntitlement {
  const { devices, notUnderstood } = entitledDevices(allocation);
  const look = new Look(host);
  const entitled = devices.flatMap((device): Entitled[] => {
    const { by, key, kind, from } = device;
    if (by === "cdi") return [{ names: [key], nodes: [], from }];
    if (by === "uuid" || by === "index") return [{ names: [`${kind}=${key}`], nodes: [], from }];
    if (by === "node") return [];
    return byNodes(registry, kind === undefined ? KINDS : [kind], drmNodes(look, device), from);
  });
  // Of what a device plugin gives by its nodes, one thing may have several: a MIG device has.
  const answered = devices.filter(({ by }) => by === "node");
  if (answered.length > 0) {
    const nodes = answered.map(({ key }) => key);
    const from = answered.map((device) => device.from).join(", ");
    entitled.push(...byNodes(registry, KINDS, nodes, from));
  }
  const isOfSpecs = devices.every(({ by }) => by === "cdi" || by === "uuid" || by === "index" || by === "node");
  return { entitled, notUnderstood, isOfSpecs };
}

/**
 * Whether an allocation may have brought nodes of which nobody tells that it did: by a device plugin whose ids say nothing
 * to us, and whose answer the kubelet did not record; or of a GPU of NVIDIA's that no CDI spec has.
 */
export function mayHaveMore({ devices }: Allocation, registry: Registry, host: Files): boolean {
  const look = new Look(host);
  return devices.some((entry) => {
    if (entry.answer !== undefined && entry.answer.nodes.length > 0) return false;
    const own = entitledDevices({ devices: [entry], claims: [] });
    const unknown = own.devices.filter((device) => !isKnown(device, registry, look));
    return entry.answer === undefined
      ? unknown.length > 0 || own.notUnderstood.length > 0
      : unknown.some(({ by }) => by === "uuid" || by === "index");
  });
}

/** Whether its nodes are known. */
function isKnown(device: EntitledDevice, registry: Registry, look: Look): boolean {
  const { by, key, kind } = device;
  if (by === "node") return true;
  if (by !== "cdi" && by !== "uuid" && by !== "index") return drmNodes(look, device).length > 0;
  try {
    registry.find(by === "cdi" ? key : `${kind}=${key}`);
    return true;
  } catch (thrown) {
    if (thrown instanceof SluiceError) return false;
    throw thrown;
  }
}

/** The nodes below /dev/dri of a GPU that is known by its place on the bus, or by one of them. */
function drmNodes(look: Look, { by, key }: EntitledDevice): string[] {
  const folder =
    by === "pci"
      ? `/sys/bus/pci/devices/${key}/drm`
      : by === "platform"
        ? `/sys/devices/platform/${key}/drm`
        : `/sys/class/drm/${key}/device/drm`;
  const names = look.names(folder).filter((name) => /^(?:card|renderD)\d+$/.test(name));
  return names.map((name) => `/dev/dri/${name}`);
}

/**
 * The devices all of whose own nodes are among these; without a name, where there are none. A MIG device's are those of
 * its GPU and more, and give the MIG device alone. What stands for all devices is none.
 */
function byNodes(registry: Registry, kinds: readonly string[], nodes: readonly string[], from: string): Entitled[] {
  const given = new Set([...nodes, ...SHARED_NODES]);
  const found: { readonly names: string[]; readonly own: ReadonlySet<string> }[] = [];
  for (const kind of kinds) {
    for (const { name, containerEdits } of registry.specsOfKind(kind).flatMap(({ spec }) => spec.devices)) {
      const paths = (containerEdits.deviceNodes ?? []).map((node) => node.hostPath ?? node.path);
      const own = new Set(paths.filter((path) => !SHARED_NODES.includes(path)));
      if (name === "all" || own.size === 0 || !isWithin(own, given)) continue;
      const same = found.find((other) => other.own.size === own.size && isWithin(own, other.own));
      if (same === undefined) found.push({ names: [`${kind}=${name}`], own });
      else same.names.push(`${kind}=${name}`);
    }
  }
  const whole = found.filter(
    ({ own }) => !found.some((other) => other.own.size > own.size && isWithin(own, other.own)),
  );
  return whole.length === 0 ? [{ names: [], nodes, from }] : whole.map(({ names }) => ({ names, nodes, from }));
}

function isWithin(some: ReadonlySet<string>, all: ReadonlySet<string>): boolean {
  return [...some].every((one) => all.has(one));
}
