import { ANNOTATION_PREFIX, parseAnnotations } from "../cdi/annotations.ts";
import { parseDeviceName } from "../cdi/name.ts";
import type { Config } from "../oci/spec.ts";
import { quote, SluiceError } from "../sys/error.ts";
import { type Ask, readAskAnnotation } from "./ask.ts";
import { featureOf, isNvidia, readFeatures } from "./features.ts";
import {
  type AskedCapabilities,
  isNvidiaVariable,
  type NvidiaVariables,
  readCapabilities,
  readNvidiaVariables,
  readVisibleDevices,
} from "./nvidia.ts";
import { type Requirement, readRequirements } from "./requirements.ts";

/** One CDI device that a container asks for, and where it says so. */
export interface AskedDevice {
  /** `vendor/class=name` */
  readonly name: string;
  /** For a person: `annotation gpu.sluice.dev`, `variable NVIDIA_VISIBLE_DEVICES`, `option --device`. */
  readonly from: string;
}

/**
 * What a container asks for. It grants nothing.
 *
 * `devices` are unique, in the order of asking. `driver` are kinds whose driver files are asked for without a device
 * (`NVIDIA_VISIBLE_DEVICES=none`); a kind of which a device is asked for is not among them.
 */
export interface Request {
  readonly devices: readonly AskedDevice[];
  readonly driver: readonly { readonly kind: string; readonly from: string }[];
  /** What is asked of NVIDIA's driver; absent where that is all, or where nothing of NVIDIA's is asked for. */
  readonly capabilities?: AskedCapabilities;
  /** What the image demands of NVIDIA's driver, where something of NVIDIA's is asked for; never empty. */
  readonly requirements?: readonly Requirement[];
}

/** What a person adds on the command line of `sluice plan` and `sluice apply`. */
export interface ExtraRequest {
  readonly devices: readonly string[];
  /** Count as the container's own, and win over those of the same key. */
  readonly annotations: Record<string, string>;
}

export const ASK = "gpu.sluice.dev";
const NOTHING: Request = { devices: [], driver: [] };

/** The annotations by which containerd and CRI-O name a pod's container, and the sandbox that is none. */
const CONTAINER_NAME = ["io.kubernetes.cri.container-name", "io.kubernetes.container.name"];
const CONTAINER_TYPE = ["io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType"];

export function isEmpty(request: Request): boolean {
  return request.devices.length === 0 && request.driver.length === 0;
}

/**
 * Reads what a container asks for from its config.json.
 *
 * Annotations and the command line say it on purpose, per container; the environment also comes from the image. So
 * `NVIDIA_VISIBLE_DEVICES` counts only where nothing else asks, as with NVIDIA's toolkit (reference 1.4); NVIDIA's other
 * variables only beside a GPU of NVIDIA's or its driver's files, in whatever way those are asked for. A pod's sandbox
 * asks for nothing: it carries its pod's annotations, but no workload.
 *
 * @throws SluiceError E_REQUEST_*, E_CDI_NAME or E_CDI_ANNOTATION, naming the annotation or variable
 */
export function readRequest(config: Config, defaultKind: string, extra?: ExtraRequest): Request {
  const annotations =
    extra === undefined ? (config.annotations ?? {}) : { ...config.annotations, ...extra.annotations };
  if (firstOf(annotations, CONTAINER_TYPE) === "sandbox") return NOTHING;

  const asked: AskedDevice[] = [];
  for (const name of extra?.devices ?? []) {
    parseDeviceName(name);
    asked.push({ name, from: "option --device" });
  }
  for (const { devices, from } of readAsks(annotations)) for (const name of devices) asked.push({ name, from });
  for (const { key, devices } of parseAnnotations(annotations)) {
    for (const name of devices) asked.push({ name, from: `annotation ${key}` });
  }
  const env = config.process?.env ?? [];
  if (asked.length > 0) {
    const request = { devices: unique(asked), driver: [] };
    return request.devices.some(isGpu) ? withVariables(request, readNvidiaVariables(env), true) : request;
  }

  const variables = readNvidiaVariables(env);
  const visible = readVisibleDevices(variables, defaultKind);
  if (visible === undefined) return NOTHING;
  const from = "variable NVIDIA_VISIBLE_DEVICES";
  if (visible === "driver") {
    const request = { devices: [], driver: [{ kind: defaultKind, from }] };
    return isNvidia(defaultKind) ? withVariables(request, variables, false) : request;
  }
  const request = { devices: unique(visible.map((name) => ({ name, from }))), driver: [] };
  return request.devices.some(isGpu) ? withVariables(request, variables, false) : request;
}

/**
 * All of a config.json that `readRequest` looks at, as one text, for who keeps what was read: a container that asks in the
 * same words asks for the same.
 */
export function wordsOf({ annotations = {}, process }: Config): string {
  let asks = "";
  for (const key of Object.keys(annotations)) {
    if (isAsk(key) || key.startsWith(ANNOTATION_PREFIX)) asks += word(key) + word(annotations[key] as string);
  }
  // Which container it is tells its annotations from those of others, and nothing else.
  const name = asks === "" ? "" : word(firstOf(annotations, CONTAINER_NAME) ?? "");
  const type = word(firstOf(annotations, CONTAINER_TYPE) ?? "");
  let variables = "";
  for (const entry of process?.env ?? []) if (isNvidiaVariable(entry)) variables += word(entry);
  return `${asks};${name};${type};${variables}`;
}

/** So that no two lists of words are one text. */
function word(text: string): string {
  return `${text.length}:${text}`;
}

/** Whether a device is a GPU of NVIDIA's, or a part of one. */
function isGpu({ name }: AskedDevice): boolean {
  return isNvidia(name) && featureOf(name) === undefined;
}

/** A request for something of NVIDIA's, together with what its variables say of it. */
function withVariables(request: Request, variables: NvidiaVariables, isNative: boolean): Request {
  const capabilities = readCapabilities(variables, isNative);
  const requirements = readRequirements(variables);
  const features = readFeatures(variables);
  return {
    devices: features.length === 0 ? request.devices : unique([...request.devices, ...features]),
    driver: request.driver,
    ...(capabilities === undefined ? {} : { capabilities }),
    ...(requirements.length === 0 ? {} : { requirements }),
  };
}

/** The first one asked for a device keeps it: it says where the device comes from. */
function unique(asked: readonly AskedDevice[]): AskedDevice[] {
  const seen = new Map<string, AskedDevice>();
  for (const device of asked) if (!seen.has(device.name)) seen.set(device.name, device);
  return [...seen.values()];
}

function firstOf(annotations: Record<string, string>, keys: readonly string[]): string | undefined {
  for (const key of keys) if (Object.hasOwn(annotations, key)) return annotations[key];
  return undefined;
}

/** Whether it is the key of an annotation by which a container asks. */
export function isAsk(key: string): boolean {
  return key.startsWith(ASK) && (key.length === ASK.length || key[ASK.length] === "/");
}

/**
 * The annotation that counts for this container: in a pod `gpu.sluice.dev/container.<name>` before
 * `gpu.sluice.dev/pod` before the plain key (DESIGN.md section 5). Those of a pod's other containers are theirs.
 */
function readAsks(annotations: Record<string, string>): (Ask & { from: string })[] {
  const keys: string[] = [];
  for (const key of Object.keys(annotations)) if (isAsk(key)) keys.push(key);
  if (keys.length === 0) return [];
  const prefix = `${ASK}/container.`;
  for (const key of keys) {
    if (key !== ASK && key !== `${ASK}/pod` && !key.startsWith(prefix)) {
      throw new SluiceError(
        "E_REQUEST_ANNOTATION",
        `annotation ${quote(key)} is not one that Sluice knows`,
        `use ${ASK}, ${ASK}/pod or ${prefix}<name>`,
      );
    }
  }
  const container = firstOf(annotations, CONTAINER_NAME);
  if (container === undefined && keys.some((key) => key.startsWith(prefix))) {
    throw new SluiceError(
      "E_REQUEST_ANNOTATION",
      `annotation ${quote(keys.find((key) => key.startsWith(prefix)) as string)} is for one container of a pod, ` +
        "and the engine does not say which container this is",
      `outside Kubernetes use the annotation ${ASK}`,
    );
  }
  for (const key of [`${prefix}${container}`, `${ASK}/pod`, ASK]) {
    if (keys.includes(key))
      return [{ ...readAskAnnotation(key, annotations[key] as string), from: `annotation ${key}` }];
  }
  return [];
}
