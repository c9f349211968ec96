/**
 * The kubelet's own records, by the UID of the pod. They say what PodResources does not: what init containers were
 * allocated, what device plugins answered, and whether an allocation is this pod's or that of an earlier pod with the
 * same name.
 *
 * Both files are the kubelet's internal state, root's alone, and replaced in one step. Their checksums are not looked
 * at: that of the device manager is of a text which only Go's printer makes. What has another form than the one known
 * here counts as not read.
 *
 * - `device-plugins/kubelet_internal_checkpoint` (devicemanager/checkpoint): written each time after a container was
 *   allocated devices, before its pod's sandbox is created. An init container's entry stays as long as the pod,
 *   although its devices pass on to the pod's other containers.
 * - `dra_manager_state` (cm/dra/state; of Kubernetes 1.32 and later): which claims were prepared for which pods.
 */

import { fromBinary } from "@bufbuild/protobuf";
import type { AllocatedClaim, AllocatedDevices, PluginAnswer } from "../policy/allocation.ts";
import { isSettled } from "../sys/cache.ts";
import { OsError, printable, reasonOf } from "../sys/error.ts";
import type { Files } from "../sys/sys.ts";
import { ContainerAllocateResponseSchema } from "./gen/deviceplugin_pb.js";

/** Bytes. A node of 500 pods with HAMi's long answers has about 1 MB. */
const LIMIT = 16 << 20;
/** Why a file's word is not known. */
export interface Unread {
  readonly unread: string;
  /** It does not exist: the kubelet writes it when there is something to write. */
  readonly missing: boolean;
}

/** What the kubelet recorded of one pod. */
export interface PodRecords {
  /** By the container's name. */
  readonly devices: ReadonlyMap<string, readonly AllocatedDevices[]> | Unread;
  /** Prepared for the pod; which of its containers name them is not recorded. */
  readonly claims: readonly AllocatedClaim[] | Unread;
}

/** Where the kubelet keeps its records. */
export interface RecordPaths {
  /** The first that exists counts. */
  readonly devices: readonly string[];
  readonly claims: string;
}

/**
 * The records' places, from that of the PodResources socket. The kubelet has it, and DRA's records, in the folder that
 * `--root-dir` names; that of device plugins is /var/lib/kubelet/device-plugins in any case.
 */
export function recordPaths(socket: string): RecordPaths {
  const root = socket.split("/").slice(0, -2).join("/");
  const checkpoint = "device-plugins/kubelet_internal_checkpoint";
  return {
    devices: [...new Set([`${root}/${checkpoint}`, `/var/lib/kubelet/${checkpoint}`])],
    claims: `${root}/dra_manager_state`,
  };
}

interface DeviceEntry {
  readonly container: string;
  readonly resource: string;
  readonly ids: readonly string[];
  /** Base64 of a ContainerAllocateResponse. */
  readonly answer: string;
}

type ByPod<T> = ReadonlyMap<string, readonly T[]>;

export class Records {
  readonly #devices: StateFile<DeviceEntry>;
  readonly #claims: StateFile<AllocatedClaim>;

  /** @param now milliseconds since the epoch */
  constructor(files: Files, euid: number, paths: RecordPaths, now: () => number = Date.now) {
    this.#devices = new StateFile(files, euid, paths.devices, now, parseDevices);
    this.#claims = new StateFile(files, euid, [paths.claims], now, parseClaims);
  }

  /** Reads a file only where it has changed since. Never throws for what is in one. */
  of(uid: string): PodRecords {
    const devices = this.#devices.read();
    const claims = this.#claims.read();
    return {
      devices: "unread" in devices ? devices : byContainer(devices.get(uid) ?? []),
      claims: "unread" in claims ? claims : (claims.get(uid) ?? []),
    };
  }
}

/** A file of the kubelet's state, kept parsed until it changes. */
class StateFile<T> {
  readonly #files: Files;
  readonly #euid: number;
  readonly #paths: readonly string[];
  readonly #now: () => number;
  readonly #parse: (text: string) => ByPod<T>;
  #kept: { readonly stamp: string; readonly content: ByPod<T> } | undefined;

  constructor(
    files: Files,
    euid: number,
    paths: readonly string[],
    now: () => number,
    parse: (text: string) => ByPod<T>,
  ) {
    this.#files = files;
    this.#euid = euid;
    this.#paths = paths;
    this.#now = now;
    this.#parse = parse;
  }

  read(): ByPod<T> | Unread {
    for (const path of this.#paths) {
      try {
        const content = this.#readAt(path);
        if (content !== undefined) return content;
      } catch (error) {
        if (error instanceof OsError) return unread(`${path} cannot be read (${error.code})`);
        // Of JSON.parse, and of the readers below.
        return unread(`${path} has another form than is known: ${printable(reasonOf(error))}`);
      }
    }
    const [only, ...others] = this.#paths;
    const missing = others.length === 0 ? `${only} does not exist` : `neither ${this.#paths.join(" nor ")} exists`;
    return { unread: missing, missing: true };
  }

  #readAt(path: string): ByPod<T> | Unread | undefined {
    const stat = this.#files.stat(path);
    if (stat === undefined) return undefined;
    if ((stat.uid !== 0 && stat.uid !== this.#euid) || (stat.mode & 0o022) !== 0) {
      return unread(`${path} can be written to by others than root`);
    }
    const stamp = `${path} ${stat.stamp}`;
    if (this.#kept?.stamp === stamp) return this.#kept.content;
    const content = this.#parse(this.#files.readText(path, LIMIT));
    // Replaced meanwhile, what was read may be the newer file, and is good. But only what stood still may be kept.
    this.#kept = isSettled(stat, this.#now()) ? { stamp, content } : undefined;
    return content;
  }
}

function unread(why: string): Unread {
  return { unread: why, missing: false };
}

function parseDevices(text: string): ByPod<DeviceEntry> {
  const data = object(object(JSON.parse(text), "it")["Data"], "Data");
  const pods = new Map<string, DeviceEntry[]>();
  // Go writes an empty list as null.
  for (const item of array(data["PodDeviceEntries"] ?? [], "PodDeviceEntries")) {
    const entry = object(item, "an entry");
    add(pods, textOf(entry, "PodUID"), {
      container: textOf(entry, "ContainerName"),
      resource: textOf(entry, "ResourceName"),
      ids: deviceIds(entry["DeviceIDs"] ?? []),
      answer: textOf(entry, "AllocResp"),
    });
  }
  return pods;
}

/** By NUMA node (a device may be at several); before Kubernetes 1.20 a plain list. */
function deviceIds(value: unknown): string[] {
  const lists = Array.isArray(value) ? [value] : Object.values(object(value, "DeviceIDs"));
  const ids = lists.flatMap((list) => array(list ?? [], "DeviceIDs"));
  if (!ids.every((id) => typeof id === "string")) throw new Error("an id in DeviceIDs is no text");
  return [...new Set(ids)];
}

function parseClaims(text: string): ByPod<AllocatedClaim> {
  const data = object(JSON.parse(textOf(object(JSON.parse(text), "it"), "Data")), "Data");
  const pods = new Map<string, AllocatedClaim[]>();
  // The list has had two names.
  for (const item of array(data["Entries"] ?? data["ClaimInfoStateList"] ?? [], "the list of claims")) {
    const claim = object(item, "a claim");
    const devices = Object.entries(object(claim["DriverState"] ?? {}, "DriverState")).flatMap(([driver, state]) =>
      array(object(state, "DriverState")["Devices"] ?? [], "Devices").map((value): AllocatedClaim => {
        const device = object(value, "a device");
        const cdiDevices = array(device["CDIDeviceIDs"] ?? [], "CDIDeviceIDs");
        if (!cdiDevices.every((name) => typeof name === "string")) throw new Error("one of CDIDeviceIDs is no text");
        return {
          namespace: textOf(claim, "Namespace"),
          name: textOf(claim, "ClaimName"),
          driver,
          pool: textOf(device, "PoolName"),
          device: textOf(device, "DeviceName"),
          cdiDevices,
        };
      }),
    );
    for (const uid of Object.keys(object(claim["PodUIDs"] ?? {}, "PodUIDs"))) {
      for (const device of devices) add(pods, uid, device);
    }
  }
  return pods;
}

function byContainer(entries: readonly DeviceEntry[]): Map<string, AllocatedDevices[]> {
  const containers = new Map<string, AllocatedDevices[]>();
  for (const { container, resource, ids, answer } of entries) {
    const decoded = decodeAnswer(answer);
    add(containers, container, decoded === undefined ? { resource, ids } : { resource, ids, answer: decoded });
  }
  return containers;
}

/** Where NVIDIA's device plugin names devices with mounts of /dev/null (its strategy "volume-mounts"). */
const MOUNTED_DEVICES = "/var/run/nvidia-container-devices";

function decodeAnswer(base64: string): PluginAnswer | undefined {
  try {
    const { envs, mounts, devices, annotations, cdiDevices } = fromBinary(
      ContainerAllocateResponseSchema,
      Buffer.from(base64, "base64"),
    );
    const named = items(envs["NVIDIA_VISIBLE_DEVICES"] ?? "").filter((name) => name !== MOUNTED_DEVICES);
    const mounted = mounts.flatMap(({ containerPath }) =>
      containerPath.startsWith(`${MOUNTED_DEVICES}/`) ? mountedDevice(containerPath) : [],
    );
    // The prefix can be configured: cdi.k8s.io/ and nvidia.cdi.k8s.io/ are in use.
    const annotated = Object.entries(annotations).flatMap(([key, value]) =>
      /(?:^|\.)cdi\.k8s\.io\//.test(key) ? items(value) : [],
    );
    return {
      visible: [...named, ...mounted],
      cdiDevices: [...new Set([...cdiDevices.map(({ name }) => name), ...annotated])],
      nodes: devices.map(({ hostPath }) => hostPath),
    };
  } catch {
    return undefined; // then it is not known, which is what `answer` says where it is absent
  }
}

/** `<folder>/<uuid>`, or `<folder>/cdi/<vendor>/<class>/<name>`. */
function mountedDevice(path: string): string {
  const name = path.slice(MOUNTED_DEVICES.length + 1);
  const cdi = /^cdi\/([^/]+\/[^/]+)\/([^/]+)$/.exec(name);
  return cdi === null ? name : `${cdi[1]}=${cdi[2]}`;
}

function items(list: string): string[] {
  return list
    .split(",")
    .map((item) => item.trim())
    .filter((item) => item !== "");
}

function add<T>(map: Map<string, T[]>, key: string, value: T): void {
  const list = map.get(key);
  if (list === undefined) map.set(key, [value]);
  else list.push(value);
}

type Json = Readonly<Record<string, unknown>>;

function object(value: unknown, what: string): Json {
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw new Error(`${what} is no object`);
  return value as Json;
}

function array(value: unknown, what: string): unknown[] {
  if (!Array.isArray(value)) throw new Error(`${what} is no list`);
  return value;
}

function textOf(json: Json, key: string): string {
  const value = json[key];
  if (typeof value !== "string") throw new Error(`${key} is no text`);
  return value;
}
