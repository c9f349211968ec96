import { featureOf } from "../request/features.ts";
import type { AskedDevice, Request } from "../request/request.ts";
import { SluiceError } from "../sys/error.ts";
import type { PodContainer } from "./allocation.ts";
import type { Settings } from "./config.ts";
import { checkDevices, type Grant, type GrantedDevice, grantOfFeature, type NamesOf } from "./grant.ts";

/** A device that the kubelet allocated to a container. */
export interface Entitled {
  /** CDI device names that it has on this machine, `vendor/class=name`; empty where no spec has it. */
  readonly names: readonly string[];
  /** Its nodes on the host, where these are what is known of it. */
  readonly nodes: readonly string[];
  /** For a person: `nvidia.com/gpu id GPU-...`. */
  readonly from: string;
}

/** How the names of devices are to be understood. */
export interface Devices {
  readonly namesOf: NamesOf;
  /** Whether two names mean one device. */
  readonly isSame: (one: string, other: string) => boolean;
}

/** Something that a container asks for, and is not given. */
export interface Denied {
  /** For a person: what is asked for, and where. */
  readonly what: string;
  /** Of the error: `E_NOT_ALLOCATED`, `E_NOT_ALLOWED`. */
  readonly code: string;
  readonly message: string;
  readonly remedy: string;
}

export interface AllocatedGrant {
  readonly grant: Grant;
  readonly denied: readonly Denied[];
}

/**
 * Decides what a pod's container may have of what it asks for: what the kubelet allocated to this very container, as far
 * as no rule forbids it (DESIGN.md section 5, "Being granted"). `all` means all that was allocated: images ask so.
 * Features need the setting `policy.features` and a device of the same vendor; the driver's files alone need that too.
 *
 * @throws SluiceError E_NOT_YET for settings that this version cannot honour
 */
export function grantAllocated(
  request: Request,
  settings: Settings,
  pod: Pick<PodContainer, "namespace">,
  entitled: readonly Entitled[],
  devices: Devices,
): AllocatedGrant {
  const granted = new Map<string, GrantedDevice>();
  const denied: Denied[] = [];
  const ofVendor = (kind: string) =>
    entitled.find(({ names }) => names.some((name) => vendorOf(name) === vendorOf(kind)));
  for (const asked of request.devices) {
    const given =
      featureOf(asked.name) === undefined
        ? grantDevice(asked, entitled, devices)
        : ofVendor(asked.name) && [{ ...asked, grant: "beside a GPU that the kubelet allocated" }];
    if (given === undefined || given.length === 0) {
      denied.push(notAllocated(`${asked.from} asks for ${asked.name}`));
      continue;
    }
    try {
      const feature = grantOfFeature(asked, settings);
      checkDevices(given, settings, devices.namesOf, pod);
      for (const one of given) {
        if (!granted.has(one.name)) granted.set(one.name, { ...one, grant: feature + one.grant });
      }
    } catch (thrown) {
      if (!(thrown instanceof SluiceError) || thrown.code !== "E_NOT_ALLOWED") throw thrown;
      denied.push({
        what: `${asked.from} asks for ${asked.name}`,
        code: "E_NOT_ALLOWED",
        message: thrown.what,
        remedy: thrown.remedy,
      });
    }
  }
  const driver = request.driver.filter(({ kind, from }) => {
    const allowed = ofVendor(kind) !== undefined;
    if (!allowed) denied.push(notAllocated(`${from} asks for the driver of ${kind}`));
    return allowed;
  });
  return {
    grant: {
      devices: [...granted.values()],
      driver,
      ...(request.capabilities === undefined ? {} : { capabilities: request.capabilities }),
    },
    denied,
  };
}

/** What the container gets for one device that it asks for; nothing where none of it was allocated. */
function grantDevice(asked: AskedDevice, entitled: readonly Entitled[], { isSame }: Devices): GrantedDevice[] {
  const [kind = "", device] = asked.name.split("=");
  if (device !== "all") {
    const match = (isOfKind: boolean): { name: string; from: string } | undefined => {
      for (const { names, from } of entitled) {
        const name = names.find((one) => one.startsWith(`${kind}=`) === isOfKind && isSame(asked.name, one));
        if (name !== undefined) return { name, from };
      }
      return undefined;
    };
    const own = match(true);
    if (own !== undefined) return [{ ...asked, grant: `the kubelet allocated ${own.from}` }];
    // Another kind's device may have more than the nodes in common: only what was allocated is given.
    const other = match(false);
    return other === undefined
      ? []
      : [{ name: other.name, from: asked.from, grant: `the kubelet allocated ${other.from}` }];
  }
  return entitled.flatMap(({ names, from }) => {
    const name = names.find((one) => one.startsWith(`${kind}=`));
    return name === undefined ? [] : [{ name, from: asked.from, grant: `the kubelet allocated ${from}` }];
  });
}

function vendorOf(name: string): string {
  return name.slice(0, name.indexOf("/"));
}

function notAllocated(what: string): Denied {
  return {
    what,
    code: "E_NOT_ALLOCATED",
    message: `${what}, which the kubelet did not allocate to it`,
    remedy:
      "request it under resources.limits of the container, or by a resource claim; or remove what asks for it " +
      "(of an image: set NVIDIA_VISIBLE_DEVICES=void in the pod)",
  };
}
