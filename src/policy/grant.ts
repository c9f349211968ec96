import { featureOf } from "../request/features.ts";
import type { AskedDevice, Request } from "../request/request.ts";
import { SluiceError } from "../sys/error.ts";
import type { Settings } from "./config.ts";

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

/**
 * Decides what the container may have (DESIGN.md section 5, "Being granted"). With `trust = "engine"`, whoever can
 * start containers on this engine may have what they name, but for features (request/features.ts): those only as far as
 * `features` allows, since an image that nobody looked into may ask for them too.
 *
 * @throws SluiceError E_NOT_YET for settings that this version cannot honour; E_NOT_ALLOWED
 */
export function grantRequest(request: Request, settings: Settings): Grant {
  const { trust } = settings.policy;
  if (trust !== "engine") {
    throw notYet(`policy.trust = "${trust}"`, 'set policy.trust = "engine", or leave it out');
  }
  const mode = settings.share.defaultMode;
  if (mode !== "exclusive") {
    throw notYet(`share.default_mode = "${mode}"`, 'set share.default_mode = "exclusive", or leave it out');
  }
  const grant = "policy.trust = engine: whoever can start containers here may have what they name";
  return {
    devices: request.devices.map((device) => ({ ...device, grant: grantFeature(device, settings) + grant })),
    driver: request.driver,
    ...(request.capabilities === undefined ? {} : { capabilities: request.capabilities }),
  };
}

/** What lets the container have a feature, to be put before who vouches for it; empty of a device that is none. */
function grantFeature({ name, from }: AskedDevice, settings: Settings): string {
  const feature = featureOf(name);
  if (feature === undefined) return "";
  if (settings.policy.features.includes(feature.name)) return `policy.features has ${feature.name}; `;
  throw new SluiceError(
    "E_NOT_ALLOWED",
    `${from} asks for ${feature.title} (${name}), which the setting policy.features does not allow`,
    `add "${feature.name}" to policy.features, or remove what asks for it`,
  );
}

function notYet(setting: string, remedy: string): SluiceError {
  return new SluiceError("E_NOT_YET", `the setting ${setting} is not supported yet`, remedy);
}
