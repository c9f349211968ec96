import { featureOf } from "../request/features.ts";
import type { AskedDevice, Request } from "../request/request.ts";
import { SluiceError } from "../sys/error.ts";
import type { PodContainer } from "./allocation.ts";
import type { Settings } from "./config.ts";
import { checkRules, type DeviceNames } from "./rules.ts";

export interface GrantedDevice {
  /** `vendor/class=name` */
  readonly name: string;
  /** Where the container asks for it. */
  readonly from: string;
  /** Who vouches for it. */
  readonly grant: string;
}

/** What a container may have of what it asks for. All of it, or there is no grant. */
export interface Grant {
  readonly devices: readonly GrantedDevice[];
  readonly driver: Request["driver"];
  /** Of the driver no more than these; absent for all. */
  readonly capabilities?: Request["capabilities"];
}

/** By which names rules can mean a CDI device. */
export type NamesOf = (name: string) => DeviceNames;

/** Whose word counts for a container: that of whoever can start it, or the kubelet's alone. */
export function trustFor({ policy }: Settings, pod: PodContainer | undefined): "engine" | "allocated" {
  if (isTrusted(policy, pod)) return "engine";
  if (policy.trust !== "auto") return policy.trust;
  return pod === undefined ? "engine" : "allocated";
}

function isTrusted({ trustedNamespaces }: Settings["policy"], pod: PodContainer | undefined): boolean {
  return pod !== undefined && trustedNamespaces.includes(pod.namespace);
}

/**
 * Decides what the container may have (DESIGN.md section 5, "Being granted") where the engine is trusted: whoever can
 * start containers on it may have what they name, but for what rules forbid, and for features (request/features.ts):
 * those only as far as `features` allows, since an image that nobody looked into may ask for them too.
 *
 * @param pod the container's, where it is one of a pod
 * @throws SluiceError E_NOT_ALLOCATED where only the kubelet is trusted, and the container is in no pod, E_NOT_ALLOWED, or
 * E_NOT_YET for settings that this version cannot honour
 */
export function grantRequest(
  request: Request,
  settings: Settings,
  namesOf: NamesOf,
  pod?: PodContainer | undefined,
): Grant {
  if (settings.policy.trust === "allocated" && pod === undefined) {
    throw new SluiceError(
      "E_NOT_ALLOCATED",
      `the container asks for ${request.devices[0]?.name ?? "a driver"}, and is in no pod: no kubelet allocates to it`,
      'set policy.trust = "auto" to let those who start containers outside pods have what they name',
    );
  }
  checkDevices(request.devices, settings, namesOf, pod);
  const grant = isTrusted(settings.policy, pod)
    ? `policy.trusted_namespaces has ${pod?.namespace}: its pods may have what they name`
    : "policy.trust = engine: whoever can start containers here may have what they name";
  return {
    devices: request.devices.map((device) => ({ ...device, grant: `${grantOfFeature(device, settings)}${grant}` })),
    driver: request.driver,
    ...(request.capabilities === undefined ? {} : { capabilities: request.capabilities }),
  };
}

/**
 * What holds whoever vouches for a device: the default mode is one that there is, and no rule forbids it.
 *
 * @throws SluiceError E_NOT_ALLOWED, E_NOT_YET
 */
export function checkDevices(
  devices: readonly AskedDevice[],
  { policy, share }: Settings,
  namesOf: NamesOf,
  pod: Pick<PodContainer, "namespace"> | undefined,
): void {
  const mode = share.defaultMode;
  if (mode !== "exclusive") {
    const setting = `share.default_mode = "${mode}"`;
    throw new SluiceError(
      "E_NOT_YET",
      `the setting ${setting} is not supported yet`,
      'set share.default_mode = "exclusive", or leave it out',
    );
  }
  if (policy.allow.length === 0 && policy.deny.length === 0) return;
  const ruled = devices.map(({ name, from }) => ({ what: `${from} asks for ${name}`, ...namesOf(name) }));
  checkRules(policy, pod?.namespace, ruled, mode);
}

/**
 * What lets a container have a feature, to be put before who vouches for it; empty of a device that is none.
 * @throws SluiceError E_NOT_ALLOWED
 */
export function grantOfFeature({ name, from }: AskedDevice, { policy }: Settings): string {
  const feature = featureOf(name);
  if (feature === undefined) return "";
  if (policy.features.includes(feature.name)) return `policy.features has ${feature.name}; `;
  throw new SluiceError(
    "E_NOT_ALLOWED",
    `${from} asks for ${feature.title} (${name}), which the setting policy.features does not allow`,
    `add "${feature.name}" to policy.features, or remove what asks for it`,
  );
}
