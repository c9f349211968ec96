/**
 * Requests in a container's annotations, as device plugins and the kubelet write them: any key with the prefix
 * `cdi.k8s.io/`, and as its value a comma list of fully qualified device names without spaces.
 */

import { quote, reasonOf, SluiceError } from "../sys/error.ts";
import { parseDeviceName } from "./name.ts";

export const ANNOTATION_PREFIX = "cdi.k8s.io/";

/** What Kubernetes allows for the part of a key after its prefix. */
const KEY_NAME_MAX = 63;
const KEY_NAME = /^[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?$/;

export interface AnnotationRequest {
  /** The annotation's key, with its prefix. */
  readonly key: string;
  /** Fully qualified names, in the order of the value. */
  readonly devices: readonly string[];
}

function keyName(plugin: string, deviceId: string): string {
  return `${plugin}_${deviceId.replaceAll("/", "_")}`;
}

/**
 * The key under which a plugin asks for a device: unique for the pair of both.
 * @param plugin by convention `vendor.device-type`
 * @throws SluiceError E_CDI_ANNOTATION
 */
export function annotationKey(plugin: string, deviceId: string): string {
  const name = keyName(plugin, deviceId);
  const problem =
    plugin === ""
      ? "the plugin's name is empty"
      : deviceId === ""
        ? "the device's id is empty"
        : name.length > KEY_NAME_MAX
          ? `it has ${name.length} characters, more than ${KEY_NAME_MAX}`
          : KEY_NAME.test(name)
            ? undefined
            : "it holds something other than letters, digits, _ - and . between a letter or digit at each end";
  if (problem !== undefined) {
    throw new SluiceError(
      "E_CDI_ANNOTATION",
      `no annotation key can be made of plugin ${quote(plugin)} and device ${quote(deviceId)}: ${problem}`,
      "choose a shorter or simpler plugin name or device id",
    );
  }
  return ANNOTATION_PREFIX + name;
}

/** @throws SluiceError E_CDI_NAME for a name that is not fully qualified */
export function annotationValue(devices: readonly string[]): string {
  for (const device of devices) parseDeviceName(device);
  return devices.join(",");
}

/**
 * The requests in a container's annotations, sorted by key, so that the same annotations always give the same order of
 * devices (the reference library's order is that of a Go map: random). One bad name refuses all of them: a container
 * must not start with a part of what it asked for.
 * @throws SluiceError E_CDI_ANNOTATION, which names the key
 */
export function parseAnnotations(annotations: Readonly<Record<string, unknown>>): AnnotationRequest[] {
  const keys: string[] = [];
  for (const key of Object.keys(annotations)) if (key.startsWith(ANNOTATION_PREFIX)) keys.push(key);
  if (keys.length === 0) return [];
  return keys.sort().map((key) => {
    const value = annotations[key];
    try {
      if (typeof value !== "string") throw new Error("its value is not a text");
      const devices = value.split(",");
      for (const device of devices) parseDeviceName(device);
      return { key, devices };
    } catch (e) {
      throw new SluiceError(
        "E_CDI_ANNOTATION",
        `annotation ${quote(key)}: ${reasonOf(e)}`,
        "give it a comma list of CDI device names without spaces, for example nvidia.com/gpu=0,nvidia.com/gpu=1",
        e,
      );
    }
  });
}
