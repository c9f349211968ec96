import { deviceNameProblem, isDeviceName, kindProblem } from "../cdi/name.ts";
import { printable, quote } from "../sys/error.ts";
import type { Allocation, PluginAnswer } from "./allocation.ts";

/** A device that the kubelet allocated, as whoever chose it names it. */
export interface EntitledDevice {
  /**
   * What `key` is:
   *
   * | by | key |
   * |---|---|
   * | `cdi` | a CDI device name: `vendor/class=name` |
   * | `uuid` | NVIDIA's UUID of a GPU (`GPU-...`) or a MIG device (`MIG-...`, or as `MIG-GPU-.../GI/CI` by older drivers) |
   * | `index` | a GPU's, or a MIG device's, number in the driver's order: `0`, `0:1` |
   * | `pci` | a PCI address: `0000:41:00.0` |
   * | `drm` | a node below /dev/dri: `card0` |
   * | `platform` | a device of the platform bus: `amdgpu_xcp_1`, a partition of an AMD GPU |
   * | `node` | a device node's path on the host |
   */
  readonly by: "cdi" | "uuid" | "index" | "pci" | "drm" | "platform" | "node";
  readonly key: string;
  /** `vendor/class` under which a CDI spec of the vendor's has it; absent for `cdi`, which says it, and for `node`. */
  readonly kind?: string;
  /** Which of several shares of the device. */
  readonly share?: string;
  /** For a person: `nvidia.com/gpu id GPU-...::2`. */
  readonly from: string;
}

export interface Entitlement {
  readonly devices: readonly EntitledDevice[];
  /** What was allocated and means no device here, in words, fit to be shown. For the audit. */
  readonly notUnderstood: readonly string[];
}

/** Characters. The device plugin API has 63 for an id; CDI sets no limit. */
const MAX_NAME = 512;
/** Names of one container. No machine has as many devices, and each costs the audit a line. */
const MAX_NAMES = 1024;

const UUID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}";
/** NVIDIA's names: of a GPU, of a MIG device, of a MIG device by drivers before R470. */
const NVIDIA_UUID = new RegExp(`^(?:GPU-${UUID}|MIG-${UUID}|MIG-GPU-${UUID}/[0-9]{1,3}/[0-9]{1,3})$`);
/** HAMi's ids, and those of its forerunners: a GPU's UUID and a number. */
const HAMI_TICKET = new RegExp(`^GPU-${UUID}-[0-9]{1,4}$`);
const INDEX = /^[0-9]{1,3}(?::[0-9]{1,3})?$/;
const PCI_ADDRESS = /^[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$/;
const DRM_NODE = /^(?:card|renderD)[0-9]{1,5}$/;
const AMD_PARTITION = /^amdgpu_xcp_[0-9]{1,5}$/;
const INTEL_ID = /^(card[0-9]{1,5})-([0-9]{1,5})$/;
/** `NAME::SHARE`, as NVIDIA's plugin writes replicas, and ours shares. */
const SHARED = /^(.+)::([0-9]{1,5})$/;

/** Values of NVIDIA_VISIBLE_DEVICES that name no device. */
const NO_DEVICE = ["none", "void"];

/**
 * Which devices an allocation means. Pure; what it cannot read it says, and never throws.
 *
 * Ids are a device plugin's own, and its answer to the kubelet is what the container gets. Where the answer names GPUs,
 * an id that names another one gives nothing: HAMi's plugin chooses the card when it answers.
 *
 * The forms of ids, from the plugins' sources: NVIDIA k8s-device-plugin (`UUID`, `UUID::REPLICA`), HAMi
 * (`GPU-UUID-TICKET`), AMD's (PCI address, `amdgpu_xcp_N`), Intel's (`cardN-SHARE`), ours (a device name of the
 * resource's kind, or a full one; `::SHARE`).
 */
export function entitledDevices(allocation: Allocation): Entitlement {
  const found = new Found();
  for (const { resource, ids, answer } of allocation.devices) {
    if (kindProblem(resource) !== undefined) {
      found.notUnderstood(`${ids.length} ids of the resource ${quote(resource)}: ${kindProblem(resource)}`);
      continue;
    }
    for (const id of ids) found.name(id, (name) => readId(name, resource, answer), `${resource} id`);
    if (answer !== undefined) readAnswer(found, resource, answer);
  }
  for (const claim of allocation.claims) {
    const from = `claim ${quote(`${claim.namespace}/${claim.name}`)} of the driver ${quote(claim.driver)}:`;
    for (const name of claim.cdiDevices) found.name(name, readCdiName, from);
  }
  return found.result();
}

type Device = Omit<EntitledDevice, "from">;

/** What a name means; or in words why it means nothing here; or nothing at all, which is right of it. */
type Meaning = Device | string | undefined;

/** Collects devices, each once. */
class Found {
  readonly #devices = new Map<string, EntitledDevice>();
  readonly #withShares = new Set<string>();
  readonly #notUnderstood: string[] = [];
  #names = 0;

  name(name: string, read: (name: string) => Meaning, from: string): void {
    this.#names++;
    if (this.#names > MAX_NAMES) {
      if (this.#names === MAX_NAMES + 1) this.notUnderstood(`what is beyond ${MAX_NAMES} names`);
      return;
    }
    const meaning = name.length > MAX_NAME ? `it has more than ${MAX_NAME} characters` : read(name);
    if (typeof meaning === "string") this.notUnderstood(`${from} ${quote(name)}: ${meaning}`);
    else if (meaning !== undefined) this.#add({ ...meaning, from: `${from} ${name}` });
  }

  notUnderstood(what: string): void {
    this.#notUnderstood.push(what);
  }

  result(): Entitlement {
    return { devices: [...this.#devices.values()], notUnderstood: this.#notUnderstood };
  }

  /** Two shares of a device are two; a device that is named without a share beside one with it is the same. */
  #add(device: EntitledDevice): void {
    const whole = `${device.by} ${device.kind ?? ""} ${device.key}`;
    if (device.share !== undefined) this.#withShares.add(whole);
    else if (this.#withShares.has(whole)) return;
    const key = `${whole} ::${device.share ?? ""}`;
    if (!this.#devices.has(key)) this.#devices.set(key, device);
  }
}

function readId(id: string, resource: string, answer: PluginAnswer | undefined): Meaning {
  const [vendor = ""] = resource.split("/");
  if (HAMI_TICKET.test(id)) {
    // It says nothing of the card that was given, so without an answer nobody knows.
    return answer === undefined || isSilent(answer)
      ? "HAMi's ids do not say which GPU was given, and what its plugin answered is not known"
      : undefined;
  }
  const [, base = id, share] = SHARED.exec(id) ?? [];
  const shared = share === undefined ? {} : { share };
  if (NVIDIA_UUID.test(base)) {
    const named = answer === undefined ? [] : uuidsOf(answer);
    return named.length === 0 || named.includes(base)
      ? { by: "uuid", key: base, kind: "nvidia.com/gpu", ...shared }
      : "its plugin answered with another GPU";
  }
  if (vendor === "amd.com") {
    const kind = "amd.com/gpu";
    if (PCI_ADDRESS.test(base)) return { by: "pci", key: base, kind, ...shared };
    if (AMD_PARTITION.test(base)) return { by: "platform", key: base, kind, ...shared };
    if (DRM_NODE.test(base)) return { by: "drm", key: base, kind, ...shared };
  }
  if (vendor === "gpu.intel.com") {
    const [, card, ticket] = INTEL_ID.exec(id) ?? [];
    if (card !== undefined && ticket !== undefined)
      return { by: "drm", key: card, kind: "intel.com/gpu", share: ticket };
  }
  return readOwnId(base, resource, answer, shared);
}

/** A CDI device name, or a device's name of the resource's kind. */
function readOwnId(
  base: string,
  resource: string,
  answer: PluginAnswer | undefined,
  shared: { readonly share?: string },
): Meaning {
  // The device that stands for all of its kind is no allocation of one.
  if (base === "all" || base.endsWith("=all"))
    return "it is no device, but all of them; what the plugin answered counts";
  if (isDeviceName(base)) return { by: "cdi", key: base, ...shared };
  const problem = deviceNameProblem(base);
  if (problem !== undefined) return problem;
  // Another vendor's plugin may number its devices in an order of its own; its answer tells.
  const key = `${resource}=${base}`;
  if (answer === undefined || isSilent(answer) || answer.cdiDevices.includes(key)) return { by: "cdi", key, ...shared };
  return "it is a name of the plugin's own; what the plugin answered counts";
}

/** Whether an answer names no device at all. */
function isSilent({ visible, cdiDevices, nodes }: PluginAnswer): boolean {
  return visible.length === 0 && cdiDevices.length === 0 && nodes.length === 0;
}

/** NVIDIA's UUIDs in an answer. */
function uuidsOf({ visible, cdiDevices }: PluginAnswer): string[] {
  return [...visible, ...cdiDevices.map((name) => name.slice(name.indexOf("=") + 1))].filter((name) =>
    NVIDIA_UUID.test(name),
  );
}

function readAnswer(found: Found, resource: string, { visible, cdiDevices, nodes }: PluginAnswer): void {
  const of = `the answer of the plugin of ${resource}:`;
  for (const name of visible) found.name(name, readVisible, `${of} NVIDIA_VISIBLE_DEVICES`);
  for (const name of cdiDevices) found.name(name, readCdiName, `${of} CDI device`);
  for (const path of nodes) found.name(path, readNode, `${of} node`);
}

/** An item of NVIDIA_VISIBLE_DEVICES. `all` is no allocation of a device. */
function readVisible(name: string): Meaning {
  if (NO_DEVICE.includes(name)) return undefined;
  const kind = "nvidia.com/gpu";
  if (NVIDIA_UUID.test(name)) return { by: "uuid", key: name, kind };
  if (INDEX.test(name)) return { by: "index", key: name, kind };
  return isDeviceName(name) ? { by: "cdi", key: name } : "it is no UUID, no number and no CDI device name";
}

function readCdiName(name: string): Meaning {
  return isDeviceName(name) ? { by: "cdi", key: name } : "it is no CDI device name";
}

function readNode(path: string): Meaning {
  const isPlain = printable(path) === path && path.startsWith("/dev/") && !path.split("/").includes("..");
  return isPlain ? { by: "node", key: path } : "it is no path of a device node";
}
